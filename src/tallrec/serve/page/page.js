// The page's state is the list of likes and dislikes; everything shown follows from it.
// Text from the server reaches the page as text only (textContent), never as HTML.

import { Search } from "./search.js";
import { element, Service } from "./service.js";

const SHOWN = 10;
const AGAIN_MS = 2000;
const at = (id) => document.getElementById(id);

const service = new Service(() => { at("access").hidden = false; at("token").focus(); });
let history = JSON.parse(localStorage.getItem("history") ?? "[]");
let newest = 0; // a ranking that comes late must not replace a newer one
let retry = 0;

function say(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

function events() {
  return history.map(({ item, liked }) => ({ item, liked }));
}

function add(found, liked) {
  history = [...history.filter(({ item }) => item !== found.item), { ...found, liked }];
  changed();
}

function changed() {
  localStorage.setItem("history", JSON.stringify(history));
  showHistory();
  rank();
}

function showHistory() {
  at("nothing").hidden = history.length > 0;
  at("history").replaceChildren(...history.map((said) => {
    const liked = choice("Liked", said.liked, "", () => add(said, true));
    const disliked = choice("Disliked", !said.liked, "no", () => add(said, false));
    const remove = element("button", "", "×", () => {
      history = history.filter(({ item }) => item !== said.item);
      changed();
      at("query").focus();
    });
    remove.ariaLabel = `Remove ${said.title}`;
    for (const button of [liked, disliked]) button.ariaLabel = `${button.textContent}: ${said.title}`;
    return element("li", "", [element("span", "title", said.title), liked, disliked, remove]);
  }));
}

function choice(text, pressed, kind, act) {
  const button = element("button", kind, text, act);
  button.ariaPressed = pressed;
  return button;
}

async function rank() {
  const turn = ++newest;
  clearTimeout(retry);
  at("state").textContent = "Ranking …";
  at("ranked").classList.add("stale");
  try {
    const answer = await service.post("v1/rank", { history: events(), k: SHOWN });
    if (turn !== newest) return;
    say("");
    showRanked(answer);
  } catch (error) {
    if (turn !== newest) return;
    at("state").textContent = "";
    say(error.message);
    if (error.again) retry = setTimeout(rank, AGAIN_MS);
  }
}

function showRanked({ items, scored }) {
  at("state").textContent = `Best ${items.length} of ${scored.toLocaleString("en")} ranked`;
  at("ranked").classList.remove("stale");
  at("ranked").replaceChildren(...items.map(ranked));
}

function ranked(found) {
  const percent = `${Math.round(100 * found.probability)} %`;
  const title = element("span", "title", found.title);
  if (found.creator) title.append(element("span", "by", ` by ${found.creator}`));
  const filled = element("div", "", "");
  filled.style.width = `${100 * found.probability}%`;
  const bar = element("div", "bar", [filled]);
  Object.assign(bar, { role: "meter", ariaValueMin: 0, ariaValueMax: 1 });
  Object.assign(bar, { ariaValueNow: found.probability, ariaLabel: `Probability of a like: ${percent}` });
  const why = element("ul", "why", "");
  why.hidden = true;
  const right = choice("Like it", false, "", () => tell(found, true, right, wrong));
  const wrong = choice("Not for me", false, "no", () => tell(found, false, right, wrong));
  const explain = element("button", "", "Why?", () => showWhy(found, explain, why));
  explain.ariaExpanded = false;
  for (const button of [right, wrong, explain]) {
    button.ariaLabel = `${button.textContent}: ${found.title}`;
  }
  return element("li", "", [
    element("div", "line", [title, element("span", "percent", percent)]),
    bar,
    element("div", "row", [explain, right, wrong]),
    why,
  ]);
}

async function showWhy(found, button, list) {
  list.hidden = !list.hidden;
  button.ariaExpanded = !list.hidden;
  if (list.hidden) return;
  list.replaceChildren(element("li", "", "Asking the model …"));
  try {
    const { reasons } = await service.post("v1/explain", { history: events(), item: found.item });
    const lines = reasons.slice(0, 5).map(({ title, liked, effect }) => element("li", "", [
      element("span", `effect ${effect < 0 ? "down" : "up"}`, `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(2)}`),
      element("span", "", `because you ${liked ? "liked" : "disliked"} ${title}`),
    ]));
    const none = element("li", "", "Nothing is known of you: this is what the model expects of anybody.");
    list.replaceChildren(...(lines.length ? lines : [none]));
  } catch (error) {
    list.replaceChildren(element("li", "", error.message));
  }
}

async function tell(found, liked, right, wrong) {
  try {
    await service.post("v1/feedback", { user: user(), item: found.item, liked });
    right.ariaPressed = liked;
    wrong.ariaPressed = !liked;
    say("");
  } catch (error) {
    say(`Not stored: ${error.message}`);
  }
}

function user() {
  let name = localStorage.getItem("user");
  if (!name) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    name = `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
    localStorage.setItem("user", name);
  }
  return name;
}

async function stored(method) {
  try {
    const answer = await service.ask(method, `v1/users/${user()}/feedback`);
    at("stored").hidden = false;
    at("stored").textContent = JSON.stringify(answer, null, 2);
  } catch (error) {
    say(error.message);
  }
}

async function showCard() {
  try {
    const card = await service.ask("GET", "v1/model");
    for (const place of document.querySelectorAll("[data-domain]")) place.textContent = card.domain;
    const tuned = card.shots ? `tuned on ${card.shots} samples` : "not tuned";
    const process = `a Gaussian process of ${card.shots} samples on what ${card.backbone} knows of titles`;
    const what = card.by === "model" ? `${card.backbone}, ${tuned}` : process;
    at("card").textContent =
      `Model ${card.model}: ${what}, ${card.items.toLocaleString("en")} ${card.domain}s.`;
    at("measured").textContent = measured(card.measured);
  } catch (error) {
    if (error.again) setTimeout(showCard, AGAIN_MS);
  }
}

function measured(facts) {
  if (!facts || facts.auc === null) return "Its quality was not measured: run tallrec evaluate.";
  const interval = facts.low === null ? "" : ` (95 %: ${facts.low.toFixed(3)} to ${facts.high.toFixed(3)})`;
  const best = facts.best_counting;
  const beside = best ? `; ${best.name}, which only counts, has ${best.auc.toFixed(3)}` : "";
  return `Measured on ${facts.rows.toLocaleString("en")} questions of ${facts.users.toLocaleString("en")} users: ` +
    `AUC ${facts.auc.toFixed(3)}${interval}${beside}. 0.5 is a coin, 1 is always right.`;
}

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  service.token = at("token").value;
  at("access").hidden = true;
  showCard();
  rank();
});
at("export").addEventListener("click", () => stored("GET"));
at("forget").addEventListener("click", () => stored("DELETE"));
new Search(at("query"), at("found"), service, add, say);
showCard();
showHistory();
rank();
