import pytest


@pytest.fixture
def panels_of(monkeypatch):
    """Give a list that the panels of the figures of a module go to in place of files."""

    def caught(module):
        drawn = []
        monkeypatch.setattr(module, "save_figure", lambda figure, _: drawn.extend(figure.axes))
        return drawn

    return caught
