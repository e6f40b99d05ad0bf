// Asks the service that this page came from, and makes elements of what it says.

export class Service {
  token = sessionStorage.getItem("token") ?? "";

  constructor(onTokenNeeded) {
    this.onTokenNeeded = onTokenNeeded;
  }

  post(path, body) {
    return this.ask("POST", path, body);
  }

  /** The answer as an object. Errors say `again` if the same question may be answered later. */
  async ask(method, path, body) {
    const headers = body ? { "Content-Type": "application/json" } : {};
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    let answer;
    try {
      answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    } catch {
      throw trouble("The service does not answer. Trying again …", true);
    }
    if (answer.status === 401) {
      this.onTokenNeeded();
      throw trouble("A valid token is needed.", false);
    }
    if (this.token) sessionStorage.setItem("token", this.token);
    if (answer.ok) return answer.json();
    const busy = answer.status === 429 || answer.status >= 500;
    const { detail } = await answer.json().catch(() => ({}));
    const said = typeof detail === "string" ? detail : `error ${answer.status}`;
    throw trouble(busy ? `The service is busy (${said}). Trying again …` : said, busy);
  }
}

function trouble(message, again) {
  return Object.assign(new Error(message), { again });
}

/** An element with a class and with text or children in it; `act` makes it a button that acts. */
export function element(tag, name, content, act) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (typeof content === "string") made.textContent = content;
  else made.append(...content);
  if (act) {
    made.type = "button";
    made.addEventListener("click", act);
  }
  return made;
}
