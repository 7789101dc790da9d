// The review. A decision counts once the server has said that it is on the disk; until then no key
// decides again. What was typed and not yet decided is in the browser's storage.
import * as server from "./server.js";
import { difference } from "./words.js";

const FIELDS = ["caption", "new_caption", "note"];
const JUDGED = ["accept", "reject"];
// What is said of a verdict that stands; the signs tell them apart without color.
const SAID = { accept: "\u2713 accepted", reject: "\u2717 rejected", skip: "\u2013 skipped" };
const DONE = { accept: "accepted", reject: "rejected", skip: "skipped", undo: "undone" };
// Slower than the three changes a second that are known to harm some.
const FLICKER = 700;

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const state = {
  folder: "",
  reviewer: "",
  fixed: false, // the server was started for this reviewer
  items: [], // {id, concept, verdict}
  place: -1,
  item: null, // all of items[place], once it is there
  candidate: "",
  latest: null,
  agreement: [],
  saving: false,
};

// ---- what is kept in the browser -------------------------------------------------------------

const kept = {
  key: (...parts) => ["hnpretrain-review", state.folder, ...parts].join("\n"),
  get(...parts) {
    try {
      return JSON.parse(localStorage.getItem(kept.key(...parts)));
    } catch {
      return null; // no storage, or something else in it
    }
  },
  set(value, ...parts) {
    try {
      if (value === null) localStorage.removeItem(kept.key(...parts));
      else localStorage.setItem(kept.key(...parts), JSON.stringify(value));
    } catch {
      // A browser that keeps nothing forgets drafts at a reload; all else works.
    }
  },
};

const texts = () => Object.fromEntries(FIELDS.map((name) => [name, $(name).value]));
const undrafted = (item) => {
  const from = item.state.decision ?? item;
  return { caption: from.caption, new_caption: from.new_caption, note: item.state.decision?.note ?? "" };
};

function keepDraft(item, written) {
  const plain = undrafted(item);
  const same = FIELDS.every((name) => written[name] === plain[name]);
  kept.set(same ? null : written, "draft", state.reviewer, item.id);
}

// ---- drawing ---------------------------------------------------------------------------------

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(text, problem = "") {
  $("status").textContent = text;
  $("problem").textContent = problem;
}

function drawProgress() {
  const judged = state.items.filter((item) => JUDGED.includes(item.verdict));
  const skipped = state.items.filter((item) => item.verdict === "skip").length;
  $("bar").max = Math.max(1, state.items.length);
  $("bar").value = judged.length;
  $("progress").textContent =
    `${judged.length} of ${state.items.length} judged` + (skipped ? `, ${skipped} skipped` : "");
  const concepts = [...new Set(state.items.map((item) => item.concept))].sort();
  $("concepts").replaceChildren(
    ...concepts.map((concept) => {
      const of = (items) => items.filter((item) => item.concept === concept).length;
      const chip = element("span", { className: "label" }, `${concept} ${of(judged)}/${of(state.items)}`);
      chip.dataset.concept = concept;
      return chip;
    }),
  );
  $("agreement").textContent = state.agreement
    .map(({ reviewer, proposals, agreed, kappa }) => {
      const share = Math.round((100 * agreed) / proposals);
      const chance = kappa === null ? "" : `, kappa ${kappa.toFixed(2)}`;
      return `with ${reviewer}: ${agreed} of ${proposals} alike (${share}%${chance})`;
    })
    .join("; ");
}

function drawMarks() {
  const both = difference($("caption").value, $("new_caption").value);
  const changed = both.map((pieces) => pieces.filter((piece) => piece.changed));
  for (const [i, name] of ["caption", "new_caption"].entries()) {
    const marks = both[i].map(({ text, changed }) => (changed ? element("mark", {}, text) : text));
    $(name).parentElement.querySelector(".marks").replaceChildren(...marks, "\u200b");
  }
  const [from, to] = changed.map((pieces) => pieces.map((piece) => piece.text).join(", ") || "nothing");
  $("difference").textContent =
    changed[0].length || changed[1].length
      ? `Words that differ: ${from} \u2192 ${to}`
      : "The captions are the same.";
}

function drawState() {
  const { decision, others } = state.item.state;
  $("verdict").textContent = decision ? SAID[decision.verdict] : "open";
  $("verdict").dataset.verdict = decision?.verdict ?? "";
  const said = Object.entries(others).map(([name, verdict]) => `${name} ${DONE[verdict]} it`);
  $("others").textContent = said.join("; ");
}

function drawPicture(figure, path, absent) {
  const image = figure.querySelector(".picture");
  const broken = figure.querySelector(".broken");
  image.hidden = !path;
  broken.hidden = Boolean(path);
  broken.textContent = path ? "" : absent;
  if (!path) image.removeAttribute("src");
  else if (image.getAttribute("src") !== path) image.src = path;
  else if (image.complete && !image.naturalWidth) tellBroken(image); // of an earlier look
}

async function tellBroken(image) {
  const path = image.getAttribute("src");
  if (!path) return;
  const why = await server.whyBroken(path);
  if (image.getAttribute("src") !== path) return; // another picture is shown by now
  const broken = image.parentElement.querySelector(".broken");
  image.hidden = true;
  broken.textContent = `This picture cannot be shown: ${why}`;
  broken.hidden = false;
}

function drawOutline() {
  const on = $("outline").getAttribute("aria-pressed") === "true";
  for (const image of document.querySelectorAll(".line-art")) {
    image.hidden = !(on && state.item);
    if (!image.hidden) image.src = server.picture("outline", state.item.id);
  }
}

const shownNumber = (value) => (typeof value === "number" ? String(+value.toPrecision(3)) : value);

function drawCandidate() {
  const { item } = state;
  const found = item.candidates.find((each) => each.id === state.candidate);
  $("shown-candidate").textContent = found ? found.id : "";
  drawPicture($("edited"), found && server.picture("candidate", item.id, found.id), "No candidate yet.");
  for (const button of $("candidates").children) {
    button.setAttribute("aria-pressed", button.dataset.candidate === state.candidate);
  }
  const checks = Object.entries(found?.checks ?? {});
  const failed = checks.filter(([, check]) => !check.passed).length;
  $("checked").textContent = !found ? "" : !checks.length ? "none were made" : failed ? `${failed} failed` : "all pass";
  $("checks").replaceChildren(
    ...checks.map(([name, { value, passed }]) =>
      element(
        "li",
        { className: passed ? "" : "failed" },
        element("span", {}, `${passed ? "\u2713" : "\u2717"} ${name.replaceAll("_", " ")}`),
        element("span", {}, `${shownNumber(value)}${passed ? "" : " failed"}`),
      ),
    ),
  );
  $("accept").setAttribute("aria-disabled", state.saving || !found);
}

function drawCandidates() {
  $("candidates").replaceChildren(
    ...state.item.candidates.map((candidate, number) => {
      const failed = Object.entries(candidate.checks).filter(([, check]) => !check.passed);
      const button = element(
        "button",
        { type: "button", className: "candidate" + (candidate.passed ? "" : " failed") },
        element("img", { src: server.picture("candidate", state.item.id, candidate.id), alt: "" }),
        element("span", {}, ...(number < 9 ? [element("kbd", {}, String(number + 1)), " "] : []), candidate.id),
        element("small", {}, failed.length ? `\u2717 ${failed.map(([n]) => n.replaceAll("_", " ")).join(", ")}` : "\u2713 passes"),
      );
      button.dataset.candidate = candidate.id;
      button.addEventListener("click", () => choose(candidate.id));
      return button;
    }),
  );
  $("damaged").replaceChildren(
    ...state.item.damaged.map((why) => element("li", {}, `A candidate is damaged: ${why}`)),
  );
}

function drawItem() {
  const { item } = state;
  const label = element("span", { className: "label" }, item.concept);
  label.dataset.concept = item.concept;
  const many = item.things > 1 ? ` (${item.things} of them)` : "";
  $("title").replaceChildren(label, ` ${item.edit} `, element("b", {}, item.noun), many, " ", element("code", {}, item.id));
  $("place").textContent = `${state.place + 1} / ${state.items.length}`;
  drawPicture($("original"), server.picture("photo", item.id), "");
  const written = kept.get("draft", state.reviewer, item.id) ?? undrafted(item);
  for (const name of FIELDS) $(name).value = String(written[name] ?? "");
  drawCandidates();
  drawCandidate();
  drawMarks();
  drawState();
  drawOutline();
}

function drawSaving() {
  for (const button of document.querySelectorAll("[data-verdict]:is(button)")) {
    button.setAttribute("aria-disabled", state.saving || !state.item);
  }
  for (const name of FIELDS) $(name).readOnly = state.saving || !state.item;
  if (state.item) drawCandidate();
}

// ---- moving ----------------------------------------------------------------------------------

// Shows one proposal; true once it is there, false if it could not be had or another was asked for.
async function go(place) {
  const { id } = state.items[place];
  state.place = place;
  state.item = null;
  drawSaving();
  history.replaceState(null, "", "#" + id);
  let item;
  try {
    item = await server.proposal(state.reviewer, id);
  } catch (error) {
    if (state.place === place) {
      $("place").textContent = `${place + 1} / ${state.items.length}`;
      say($("status").textContent, `${id} cannot be shown: ${error.message}`);
    }
    return false;
  }
  if (state.place !== place) return false;
  show(item);
  prefetch(nextOpen(place));
  return true;
}

function show(item) {
  state.item = item;
  state.items[state.place].verdict = item.state.decision?.verdict ?? "";
  state.agreement = item.state.agreement;
  state.latest = item.state.latest;
  const decided = item.state.decision?.candidate;
  const known = item.candidates.some((each) => each.id === decided);
  state.candidate = known ? decided : (item.candidates[0]?.id ?? "");
  drawItem();
  drawSaving();
  drawProgress();
}

// The next one without a verdict, round the end; -1 if there is none.
function nextOpen(place) {
  const count = state.items.length;
  for (let step = 1; step <= count; step++) {
    const there = (place + step) % count;
    if (!state.items[there].verdict) return there;
  }
  return -1;
}

async function prefetch(place) {
  if (place < 0 || place === state.place) return;
  try {
    const item = await server.proposal(state.reviewer, state.items[place].id);
    const paths = item.candidates.map((each) => server.picture("candidate", item.id, each.id));
    for (const path of [server.picture("photo", item.id), ...paths]) new Image().src = path;
  } catch {
    // It will be told when it is shown.
  }
}

function step(by) {
  const there = state.place + by;
  if (there >= 0 && there < state.items.length) {
    say("");
    go(there);
  } else say(by > 0 ? "This is the last one." : "This is the first one.");
}

function choose(id) {
  if (!state.item || state.saving) return;
  state.candidate = id;
  drawCandidate();
}

function stepCandidate(by) {
  const all = state.item?.candidates ?? [];
  const now = all.findIndex((each) => each.id === state.candidate);
  if (all[now + by]) choose(all[now + by].id);
}

// ---- deciding --------------------------------------------------------------------------------

async function decide(verdict) {
  if (state.saving) return;
  if (verdict === "accept" && state.item && !state.candidate) {
    say("", "There is no candidate to accept; reject or skip it.");
    return;
  }
  if (verdict !== "undo" && !state.item) return;
  state.saving = true;
  drawSaving();
  let next = -1;
  try {
    if (verdict !== "undo" || (await goToUndo())) next = await save(verdict);
  } finally {
    state.saving = false;
    drawSaving();
  }
  if (next >= 0) await go(next);
}

// What stands of the proposal that is shown is undone, or else what was decided last.
async function goToUndo() {
  if (state.item?.state.decision) return true;
  const place = state.items.findIndex((item) => item.id === state.latest);
  if (place < 0) {
    say(state.latest ? `The last decision was on ${state.latest}, which is not shown.` : "There is nothing to undo.");
    return false;
  }
  return go(place);
}

// Where to go then, or -1.
async function save(verdict) {
  const { item, place, candidate } = state;
  const written = texts();
  say("Saving...");
  let found;
  try {
    found = await server.decide(state.reviewer, {
      proposal: item.id,
      verdict,
      candidate,
      ...written,
      seen: item.state.seen,
    });
  } catch (error) {
    say("", `Not saved: ${error.message}. What you wrote is kept.`);
    if (state.item === item) keepDraft(item, written);
    if (error.status === 409) await lookAgain(item);
    return -1;
  }
  item.state = found;
  state.items[place].verdict = found.decision?.verdict ?? "";
  state.agreement = found.agreement;
  state.latest = found.latest;
  // What was written with a decision that is undone is there to be mended.
  if (verdict === "undo") keepDraft(item, written);
  else kept.set(null, "draft", state.reviewer, item.id);
  drawProgress();
  const what = verdict === "accept" ? `accepted ${candidate} of ${item.id}` : `${DONE[verdict]} ${item.id}`;
  const open = nextOpen(place);
  say(`Saved: ${what}.` + (open < 0 ? " All are decided." : ""));
  if (state.item !== item) return -1; // somebody moved on meanwhile
  drawState();
  return verdict === "undo" ? -1 : open;
}

// What is on the disk is not what the page believed.
async function lookAgain(item) {
  try {
    const now = await server.proposal(state.reviewer, item.id);
    if (state.item === item) show(now);
  } catch {
    // The failure to save was told already, and is what matters.
  }
}

// ---- looking ---------------------------------------------------------------------------------

let flickering = 0;

function swap() {
  const pictures = $("pictures");
  pictures.dataset.shown = pictures.dataset.shown === "original" ? "edited" : "original";
}

function toggleFlicker() {
  const on = $("pictures").classList.toggle("flicker");
  $("flicker").setAttribute("aria-pressed", on);
  clearInterval(flickering);
  $("pictures").dataset.shown = on ? "edited" : "original";
  if (on && !calm.matches) flickering = setInterval(swap, FLICKER);
}

function swapByHand() {
  if (!$("pictures").classList.contains("flicker")) return;
  clearInterval(flickering);
  swap();
}

function toggleOutline() {
  const on = $("outline").getAttribute("aria-pressed") !== "true";
  $("outline").setAttribute("aria-pressed", on);
  drawOutline();
}

// ---- keys and fields -------------------------------------------------------------------------

const KEYS = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  s: () => decide("skip"),
  u: () => decide("undo"),
  e: () => $("new_caption").focus(),
  n: () => $("note").focus(),
  j: () => step(1),
  k: () => step(-1),
  f: toggleFlicker,
  x: swapByHand, // not the space bar, which presses the button that was clicked last
  m: toggleOutline,
  "?": () => $("keys").showModal(),
  arrowleft: () => stepCandidate(-1),
  arrowright: () => stepCandidate(1),
};
// A key that is held down decides once.
const ONCE = ["a", "r", "s", "u", "f", "m", "x"];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]") || $("review").hidden) return;
  const key = event.key.toLowerCase();
  // A dialog that has just closed may have the focus for one key more.
  if (event.target.matches("textarea, input") && !event.target.closest("dialog")) {
    if (key === "escape" || key === "enter") {
      event.preventDefault();
      event.target.blur();
    }
    return;
  }
  if (event.repeat && ONCE.includes(key)) return;
  if (/^[1-9]$/.test(key)) {
    const candidate = state.item?.candidates[key - 1];
    if (candidate) choose(candidate.id);
  } else if (Object.hasOwn(KEYS, key)) {
    KEYS[key]();
  } else return;
  event.preventDefault();
});

for (const name of FIELDS) {
  $(name).addEventListener("input", () => {
    const field = $(name);
    if (/[\r\n\t]/.test(field.value)) field.value = field.value.replace(/[\r\n\t]+/g, " "); // pasted
    if (state.item) keepDraft(state.item, texts());
    drawMarks();
  });
}
for (const button of document.querySelectorAll("button[data-verdict]")) {
  button.addEventListener("click", () => decide(button.dataset.verdict));
}
$("flicker").addEventListener("click", toggleFlicker);
$("outline").addEventListener("click", toggleOutline);
$("next").addEventListener("click", () => step(1));
$("previous").addEventListener("click", () => step(-1));
$("help").addEventListener("click", () => $("keys").showModal());
$("keys").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("keys").close();
});
for (const image of document.querySelectorAll(".picture")) {
  image.addEventListener("error", () => tellBroken(image));
}
addEventListener("hashchange", () => {
  const place = state.items.findIndex((item) => item.id === location.hash.slice(1));
  if (place >= 0 && place !== state.place) go(place);
});

// ---- who, and the beginning ------------------------------------------------------------------

function askName(problem) {
  $("who-name").value = state.reviewer;
  $("who-problem").textContent = problem;
  $("who").showModal();
}

// Escape leaves the question, but there is no review without a name.
$("who").addEventListener("close", () => {
  if (!state.reviewer) askName("");
});
$("who").addEventListener("cancel", (event) => {
  if ($("who-name").readOnly) event.preventDefault(); // too late: the name is on its way
});
$("who").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = $("who-name");
  if (field.readOnly) return; // Enter, twice or held down: it is on its way
  field.readOnly = true;
  const name = field.value.trim();
  const problem = await begin(name);
  field.readOnly = false;
  if (problem) {
    $("who-problem").textContent = problem;
    return;
  }
  kept.set(name, "reviewer");
  $("who").close();
});
$("name").addEventListener("click", () => {
  if (!state.fixed && !state.saving) askName("");
});

// Shows what there is for a reviewer; the problem, if the server refuses the name.
async function begin(reviewer) {
  let found;
  try {
    found = await server.review(reviewer);
  } catch (error) {
    return error.message;
  }
  state.reviewer = reviewer;
  state.items = found.items;
  state.latest = found.latest;
  state.agreement = found.agreement;
  $("name").textContent = `Reviewer: ${reviewer}`;
  $("name").classList.toggle("fixed", state.fixed);
  $("notes").replaceChildren(...found.notes.map((note) => element("li", {}, note)));
  $("notes").hidden = !found.notes.length;
  drawProgress();
  const any = state.items.length > 0;
  $("review").hidden = $("deciding").hidden = !any;
  $("nothing").hidden = any;
  const hidden = found.not_shown;
  $("nothing").textContent =
    found.only === "passed" && hidden
      ? `None of the ${hidden} proposals has a candidate that passed its checks. hnpretrain inpaint ` +
        "generate makes candidates; with --all, all proposals are shown."
      : "There is no proposal.";
  if (any) {
    const linked = state.items.findIndex((item) => item.id === location.hash.slice(1));
    const open = nextOpen(-1);
    say(open < 0 ? "All are decided." : "");
    await go(linked >= 0 ? linked : Math.max(open, 0));
  }
  return "";
}

async function start() {
  let greeting;
  try {
    greeting = await server.hello();
  } catch (error) {
    $("nothing").textContent = error.message;
    $("nothing").hidden = false;
    return;
  }
  state.folder = greeting.folder;
  state.fixed = Boolean(greeting.reviewer);
  $("folder").textContent = greeting.folder;
  const name = greeting.reviewer || kept.get("reviewer");
  if (!name) return askName("");
  const problem = await begin(String(name));
  if (problem && state.fixed) {
    $("nothing").textContent = problem;
    $("nothing").hidden = false;
  } else if (problem) askName(problem);
}

start();
