"use strict";
(() => {
  const box = document.querySelector(".field");
  if (!box) return;
  const svg = box.querySelector("svg");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  let chosen = null;
  const choose = (source, event) => {
    if (chosen) chosen.classList.remove("chosen");
    chosen = source;
    tip.hidden = !source;
    if (!source) return;
    source.classList.add("chosen");
    tip.textContent = source.dataset.tip;
    const { innerWidth, innerHeight } = window;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4))}px`;
  };
  // A finger is blunt: the nearest source will do.
  const REACH = 20;
  const near = ({ target, clientX, clientY, pointerType }) => {
    let best = target.closest(".source"), least = REACH;
    if (best || pointerType !== "touch") return best;
    for (const source of svg.querySelectorAll(".source")) {
      const { left, right, top, bottom } = source.getBoundingClientRect();
      const far = Math.hypot(clientX - (left + right) / 2, clientY - (top + bottom) / 2);
      if (far < least) [best, least] = [source, far];
    }
    return best;
  };

  let view = { x: 0, y: 0, w: width };
  const show = () => {
    view.w = Math.min(Math.max(view.w, Math.min(16, width)), width);
    const h = (view.w * height) / width;
    view.x = Math.min(Math.max(view.x, 0), width - view.w);
    view.y = Math.min(Math.max(view.y, 0), height - h);
    const seen = `${view.x} ${view.y} ${view.w} ${h}`;
    if (svg.getAttribute("viewBox") === seen) return;
    svg.setAttribute("viewBox", seen);
    choose(null);
    // Unzoomed, a finger scrolls the page; zoomed, it moves the field.
    svg.style.touchAction = view.w < width ? "none" : "pan-y";
  };
  svg.style.touchAction = "pan-y";
  // The picture may have room to its sides: the browser knows where a point of the screen lies.
  const place = (event) => {
    const matrix = svg.getScreenCTM();
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  };
  const zoom = (factor, at) => {
    const w = Math.min(Math.max(view.w / factor, Math.min(16, width)), width);
    const real = view.w / w;
    view = { x: at.x - (at.x - view.x) / real, y: at.y - (at.y - view.y) / real, w };
    show();
  };
  const middle = () => ({ x: view.x + view.w / 2, y: view.y + (view.w * height) / width / 2 });

  svg.addEventListener("wheel", (event) => {
    // The page scrolls as ever; with Ctrl (or a pinch on a touch pad) the field zooms.
    if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return;
    event.preventDefault();
    zoom(Math.exp(-(event.deltaY || event.deltaX) * 0.004), place(event));
  }, { passive: false });
  svg.addEventListener("dblclick", (event) => zoom(2, place(event)));

  const fingers = new Map();
  let spread = 0;
  svg.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    spread = 0;
    choose(near(event), event);
  });
  svg.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) {
      choose(near(event), event);
      return;
    }
    fingers.set(event.pointerId, event);
    if (fingers.size === 1) {
      const scale = svg.getScreenCTM().a;
      view.x -= (event.clientX - before.clientX) / scale;
      view.y -= (event.clientY - before.clientY) / scale;
      show();
    } else if (fingers.size === 2) {
      const [a, b] = fingers.values();
      const now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const centre = { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 };
      if (spread) zoom(now / spread, place(centre));
      spread = now;
    }
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    svg.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }

  // A finger that lifts leaves, too: what it tapped stays told until the page or the field moves.
  svg.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") choose(null);
  });
  addEventListener("scroll", () => choose(null), { passive: true });

  const acts = {
    in: () => zoom(1.6, middle()),
    out: () => zoom(1 / 1.6, middle()),
    all: () => { view = { x: 0, y: 0, w: width }; show(); },
    bare: (button) => {
      const bare = box.classList.toggle("bare");
      button.textContent = bare ? "show outlines" : "hide outlines";
    },
  };
  for (const button of document.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () => acts[button.dataset.act](button));
  }
  svg.addEventListener("keydown", (event) => {
    const step = view.w / 8;
    const keys = {
      "+": acts.in, "=": acts.in, "-": acts.out, "0": acts.all,
      ArrowLeft: () => { view.x -= step; show(); }, ArrowRight: () => { view.x += step; show(); },
      ArrowUp: () => { view.y -= step; show(); }, ArrowDown: () => { view.y += step; show(); },
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  for (const button of document.querySelectorAll("[data-window]")) {
    button.addEventListener("click", () => {
      const [x, y, w, h] = button.dataset.window.split(" ").map(Number);
      view = { x: x - w, y: y - h, w: Math.max(3 * w, (3 * h * width) / height) };
      show();
      box.scrollIntoView({ block: "start" });
    });
  }
})();
