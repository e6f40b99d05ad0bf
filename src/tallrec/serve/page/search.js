// Search as you type: a combobox after the ARIA pattern, with arrows, Enter and Escape.

import { element } from "./service.js";

const WAIT_MS = 150;
const LIMIT = 8;

export class Search {
  #items = [];
  #active = 0;
  #timer = 0;
  #turn = 0;

  constructor(input, list, service, add, say) {
    Object.assign(this, { input, list, service, add, say });
    input.addEventListener("input", () => this.#later());
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("blur", (event) => {
      if (!list.contains(event.relatedTarget)) this.#close();
    });
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus
  }

  #later() {
    clearTimeout(this.#timer);
    this.#turn += 1;
    if (this.input.value.trim()) this.#timer = setTimeout(() => this.#find(), WAIT_MS);
    else this.#close();
  }

  async #find() {
    const turn = this.#turn;
    try {
      const query = encodeURIComponent(this.input.value);
      const { items } = await this.service.ask("GET", `v1/items?q=${query}&limit=${LIMIT}`);
      if (turn !== this.#turn) return;
      this.#items = items;
      this.#active = 0;
      this.#show();
    } catch (error) {
      if (turn !== this.#turn) return;
      this.say(error.message);
      if (error.again) this.#timer = setTimeout(() => this.#find(), 10 * WAIT_MS);
    }
  }

  #show() {
    this.list.replaceChildren(...this.#items.map((item, n) => {
      const title = element("span", "title", item.title);
      if (item.creator) title.append(element("span", "by", ` by ${item.creator}`));
      title.addEventListener("click", () => this.#choose(n, true));
      const buttons = [["Like", true], ["Dislike", false]].map(([text, liked]) => {
        const button = element("button", "", text, () => this.#choose(n, liked));
        button.tabIndex = -1; // the keyboard has Enter and Shift+Enter
        return button;
      });
      const line = element("li", "", [title, ...buttons]);
      line.id = `found-${n}`;
      line.role = "option";
      return line;
    }));
    this.list.hidden = !this.#items.length;
    this.input.ariaExpanded = !this.list.hidden;
    this.#mark();
  }

  #mark() {
    [...this.list.children].forEach((line, n) => { line.ariaSelected = n === this.#active; });
    const active = this.list.children[this.#active];
    if (active) this.input.setAttribute("aria-activedescendant", active.id);
    active?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const { length } = this.#items;
    if (event.key === "Escape") this.#close();
    if (this.list.hidden || !length) return;
    if (step) this.#active = (this.#active + step + length) % length;
    if (event.key === "Enter") this.#choose(this.#active, !event.shiftKey);
    if (step || event.key === "Enter") event.preventDefault();
    if (step) this.#mark();
  }

  #choose(n, liked) {
    this.add(this.#items[n], liked);
    this.input.value = "";
    this.#close();
    this.input.focus();
  }

  #close() {
    clearTimeout(this.#timer);
    this.#turn += 1;
    this.#items = [];
    this.list.hidden = true;
    this.input.ariaExpanded = false;
    this.input.removeAttribute("aria-activedescendant");
  }
}
