"use strict";
// Filters live in the page's fragment, #concept=color,size&strategy=swap&q=cat, so that a view can
// be linked to. A negative is shown if its concept and strategy are chosen, a caption if its text or
// that of a shown negative holds the search, a sample if a caption is shown or its key is searched.

const KINDS = ["concept", "strategy"];
const search = document.getElementById("search");
const buttons = [...document.querySelectorAll("button[data-filter]")];

// Everything that filtering looks at, read from the page once.
const samples = [...document.querySelectorAll("article")].map((article) => ({
  element: article,
  key: article.dataset.key.toLowerCase(),
  captions: [...article.querySelectorAll("section")].map((section) => ({
    element: section,
    text: section.querySelector(".caption").textContent.toLowerCase(),
    marks: [...section.querySelectorAll(".caption mark")],
    negatives: [...section.querySelectorAll("li")].map((item) => ({
      element: item,
      concept: item.dataset.concept,
      strategy: item.dataset.strategy,
      text: item.querySelector(".negative").textContent.toLowerCase(),
    })),
  })),
}));
const total = { samples: samples.length, negatives: document.querySelectorAll("li").length };

function readFragment() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const chosen = { q: fields.get("q") ?? "" };
  for (const kind of KINDS) {
    chosen[kind] = new Set((fields.get(kind) ?? "").split(",").filter(Boolean));
  }
  return chosen;
}

function writeFragment(chosen) {
  const fields = KINDS.filter((kind) => chosen[kind].size).map(
    (kind) => kind + "=" + [...chosen[kind]].map(encodeURIComponent).join(","),
  );
  if (chosen.q) fields.push("q=" + encodeURIComponent(chosen.q));
  history.replaceState(null, "", "#" + fields.join("&"));
}

function apply() {
  const chosen = readFragment();
  const query = chosen.q.trim().toLowerCase();
  const fits = (negative, kind) => !chosen[kind].size || chosen[kind].has(negative[kind]);
  const picky = KINDS.some((kind) => chosen[kind].size);
  const shown = { samples: 0, negatives: 0 };
  const counts = new Map();

  for (const sample of samples) {
    let any = false;
    for (const caption of sample.captions) {
      const here = (negative) =>
        sample.key.includes(query) || caption.text.includes(query) || negative.text.includes(query);
      const visible = new Set();
      for (const [number, negative] of caption.negatives.entries()) {
        // A button tells how many there are with the other kind's filter and the search.
        for (const [kind, other] of [KINDS, [...KINDS].reverse()]) {
          if (here(negative) && fits(negative, other)) {
            const name = kind + "=" + negative[kind];
            counts.set(name, (counts.get(name) ?? 0) + 1);
          }
        }
        const fitting = here(negative) && KINDS.every((kind) => fits(negative, kind));
        negative.element.hidden = !fitting;
        if (fitting) visible.add(String(number));
      }
      const found = sample.key.includes(query) || caption.text.includes(query);
      caption.element.hidden = !(visible.size || (found && !picky));
      for (const mark of caption.marks) {
        mark.classList.toggle("off", !mark.dataset.edits.split(" ").some((n) => visible.has(n)));
      }
      any ||= !caption.element.hidden;
      shown.negatives += caption.element.hidden ? 0 : visible.size;
    }
    sample.element.hidden = !any;
    shown.samples += any ? 1 : 0;
  }

  for (const button of buttons) {
    const kind = button.dataset.filter;
    button.setAttribute("aria-pressed", chosen[kind].has(button.dataset[kind]));
    button.querySelector("b").textContent = counts.get(kind + "=" + button.dataset[kind]) ?? 0;
  }
  if (search.value !== chosen.q) search.value = chosen.q;
  const say = (what) =>
    shown[what] === total[what] ? `${total[what]} ${what}` : `${shown[what]} of ${total[what]} ${what}`;
  document.getElementById("shown").textContent = `${say("samples")}, ${say("negatives")}`;
  document.getElementById("clear").hidden = !(picky || query);
  document.getElementById("nothing").hidden = shown.samples > 0;
}

function change(edit) {
  const chosen = readFragment();
  edit(chosen);
  writeFragment(chosen);
  apply();
}

for (const button of buttons) {
  button.addEventListener("click", () => change((chosen) => {
    const names = chosen[button.dataset.filter];
    const name = button.dataset[button.dataset.filter];
    if (!names.delete(name)) names.add(name);
  }));
}
search.addEventListener("input", () => change((chosen) => { chosen.q = search.value; }));
document.getElementById("clear").addEventListener("click", () => change((chosen) => {
  for (const kind of KINDS) chosen[kind].clear();
  chosen.q = "";
}));
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", apply);

// Under the pointer, a negative shows which words of its caption it replaces.
for (const kind of ["pointerover", "pointerout"]) {
  document.addEventListener(kind, (event) => {
    const item = event.target.closest("li");
    if (!item) return;
    for (const mark of item.closest("section").querySelectorAll(".caption mark")) {
      const its = mark.dataset.edits.split(" ").includes(item.dataset.edit);
      mark.classList.toggle("on", its && kind === "pointerover");
    }
  });
}

// The pictures are in the page; one that the browser cannot decode says so.
for (const image of document.images) {
  const fail = () => {
    const note = document.createElement("div");
    note.className = "broken";
    note.textContent = "image broken";
    image.replaceWith(note);
  };
  if (image.complete && !image.naturalWidth) fail();
  else image.addEventListener("error", fail);
}

apply();
