"""How a workflow tells its caller what it is doing, without knowing about terminals."""

__all__ = ["Reporter"]


class Reporter:
    """Hears of progress and warnings; this one stays silent. The command line has its own."""

    def begin(self, label: str, total: int) -> None:
        """A task of ``total`` steps begins."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """So many steps are done; ``note`` is a short figure to show beside the bar."""

    def end(self) -> None:
        """The task is over."""

    def info(self, message: str) -> None:
        """Something worth a line."""

    def warn(self, message: str) -> None:
        """Something the user should know."""
