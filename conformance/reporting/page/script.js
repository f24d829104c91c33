"use strict";
// The page can be read without this. It adds choosing rows and columns, a panel for each cell, and links to both:
// #CELL&q=bias&impl=one,two&verdict=fail, where CELL is clause@world@implementation or a clause alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.querySelector(".matrix");
  const form = document.getElementById("filters");
  const panel = document.getElementById("panel");
  const status = document.getElementById("status");
  const rows = [...table.querySelectorAll("tr[data-clause]")];
  const findings = [...document.querySelectorAll(".finding")];
  document.documentElement.classList.add("js");

  const make = (tag, properties, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== "" && child !== null && child !== undefined));
    return node;
  };
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const say = (text) => { status.textContent = text; };

  // What is chosen, as it stands in the address

  const decoded = (text) => {
    try { return decodeURIComponent(text); } catch { return text; }
  };

  function chosen() {
    const state = { cell: "", q: "", group: "", impl: [], verdict: [] };
    for (const part of location.hash.slice(1).split("&")) {
      const [name, value] = part.split("=");
      if (value === undefined) state.cell ||= decoded(name);
      else if (name === "q" || name === "group") state[name] = decoded(value);
      else if (name === "impl" || name === "verdict") state[name] = value.split(",").filter(Boolean).map(decoded);
    }
    return state;
  }

  function address(state) {
    const parts = [state.cell];
    for (const name of ["q", "group"]) if (state[name]) parts.push(`${name}=${encodeURIComponent(state[name])}`);
    for (const name of ["impl", "verdict"]) {
      if (state[name].length) parts.push(`${name}=${state[name].map(encodeURIComponent).join(",")}`);
    }
    const hash = parts.length > 1 ? parts.join("&") : state.cell;
    return hash ? `#${hash}` : location.pathname + location.search;
  }

  function go(state, push) {
    const entry = { pushed: Boolean(push || (history.state && history.state.pushed && state.cell)) };
    history[push ? "pushState" : "replaceState"](entry, "", address(state));
  }

  // Choosing rows and columns

  function enter(state) {
    form.elements.q.value = state.q;
    form.elements.group.value = state.group;
    for (const box of form.querySelectorAll("input[type=checkbox]")) box.checked = state[box.name].includes(box.value);
  }

  function read() {
    const values = new FormData(form);
    return {
      cell: chosen().cell,
      q: values.get("q").trim(),
      group: values.get("group"),
      impl: values.getAll("impl"),
      verdict: values.getAll("verdict"),
    };
  }

  function show(state) {
    const runs = data.runs.map((run) => !state.impl.length || state.impl.includes(run.slug));
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (name) => {
      const text = `${name} ${data.clauses[name][1]}`.toLowerCase();
      return (!state.group || name.split(".")[0] === state.group) && words.every((word) => text.includes(word));
    };
    for (const part of table.querySelectorAll("[data-run]")) part.hidden = !runs[part.dataset.run];
    let shown = 0;
    for (const row of rows) {
      const name = row.dataset.clause;
      const told = (run, world) => data.cells[`${name}@${world}@${run.slug}`];
      const met = () => data.runs.some((run, n) => runs[n] && data.worlds.some((world) => {
        const cell = told(run, world);
        return cell && state.verdict.includes(cell[0]);
      }));
      row.hidden = !fits(name) || Boolean(state.verdict.length && !met());
      shown += !row.hidden;
    }
    for (const body of table.tBodies) body.hidden = ![...body.rows].some((row) => row.dataset.clause && !row.hidden);
    let told = 0;
    for (const finding of findings) {
      const { run, clause, verdict } = finding.dataset;
      finding.hidden = !runs[run] || !fits(clause) || Boolean(state.verdict.length && !state.verdict.includes(verdict));
      told += !finding.hidden;
    }
    rove();
    const all = data.runs.length;
    const implementations = all > 1 ? `, ${runs.filter(Boolean).length} of ${plural(all, "implementation")}` : "";
    return `${shown} of ${plural(rows.length, "clause")} shown${implementations}, ${told} of ${findings.length} findings listed below`;
  }

  const choose = () => {
    const state = read();
    go(state, false);
    say(show(state));
  };
  form.addEventListener("input", choose);
  form.addEventListener("reset", () => setTimeout(choose));
  form.addEventListener("submit", (event) => event.preventDefault());

  // Moving between cells: the table is one stop of the tab key, arrows do the rest

  const links = (row) => [...row.cells].filter((cell) => !cell.hidden).map((cell) => cell.querySelector("a"));
  const visible = () => rows.filter((row) => !row.hidden);

  function rove(to) {
    const old = table.querySelector('a[tabindex="0"]');
    const next = to || (old && !old.closest("[hidden]") ? old : visible().map((row) => links(row)[0])[0]);
    if (old && old !== next) old.tabIndex = -1;
    if (next) next.tabIndex = 0;
  }

  function moved(from, key, far) {
    const shown = visible();
    let y = shown.indexOf(from.closest("tr"));
    const line = links(shown[y]);
    let x = line.indexOf(from);
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
    if (key === "Home" || key === "End") {
      const row = links(shown[far ? (key === "Home" ? 0 : shown.length - 1) : y]).filter(Boolean);
      return row.at(key === "Home" ? 0 : -1);
    }
    if (!step) return null;
    for (;;) {
      y += step[0];
      x += step[1];
      if (y < 0 || y >= shown.length || x < 0 || x >= line.length) return null;
      const link = links(shown[y])[x];
      if (link) return link;
    }
  }

  for (const link of table.querySelectorAll("a")) link.tabIndex = -1;
  table.addEventListener("keydown", (event) => {
    const link = event.target.closest("a");
    if (!link || event.altKey || event.metaKey) return;
    if (event.key === " ") {
      event.preventDefault();
      link.click();
      return;
    }
    const next = moved(link, event.key, event.ctrlKey);
    if (next) next.focus();
    if (next || event.key.startsWith("Arrow")) event.preventDefault();
  });
  table.addEventListener("focusin", (event) => {
    const link = event.target.closest("a");
    if (link) rove(link);
  });

  // The panel

  const split = (cell) => {
    const [clause, world, slug] = cell.split("@");
    return { clause, world: Number(world), run: data.runs.find((run) => run.slug === slug) };
  };
  const exists = (cell) => Boolean(data.cells[cell] || data.clauses[cell]);
  const linkTo = (cell) => table.querySelector(`a[href="#${CSS.escape(cell)}"]`);

  function open(cell) {
    fill(cell);
    for (const old of table.querySelectorAll("a.open")) old.classList.remove("open");
    const link = linkTo(cell);
    if (link) link.classList.add("open");
    if (!panel.open) panel.showModal();
    panel.scrollTop = 0;
    document.getElementById("panel-title").focus();
  }

  function close() {
    const cell = chosen().cell;
    if (history.state && history.state.pushed) history.back();
    else go({ ...chosen(), cell: "" }, false);
    shut(cell);
  }

  function shut(cell) {
    if (!panel.open) return;
    panel.close();
    const link = (cell && linkTo(cell)) || table.querySelector("a.open");
    if (!link || link.closest("[hidden]")) return;
    link.classList.remove("open");
    link.focus();
  }

  function fill(cell) {
    const { clause, world, run } = split(cell);
    const [level, title, text] = data.clauses[clause];
    const where = run ? `${run.name}, world size ${world}` : "Requirement";
    const body = make("div", { className: "panel-body" },
      make("h2", { id: "panel-title", tabIndex: -1 }, clause),
      make("p", { className: "requirement" }, make("small", { className: `level ${level.toLowerCase()}` }, level), " ", make("strong", {}, `${title}. `), text));
    if (run) body.append(...about(cell, world, run));
    body.append(elsewhere(clause, cell));
    panel.replaceChildren(bar(where, cell), body);
  }

  function bar(where, cell) {
    const broken = notable();
    const place = broken.indexOf(cell);
    const step = (label, by) => {
      const to = place < 0 ? broken[by > 0 ? 0 : -1] : broken[place + by];
      const button = make("button", { type: "button", title: `${label} cell that is broken`, disabled: !to }, label);
      button.addEventListener("click", () => visit(to));
      return button;
    };
    const shutter = make("button", { type: "button" }, "Close");
    shutter.addEventListener("click", close);
    return make("div", { className: "panel-bar" }, make("span", { className: "where" }, where), step("Previous", -1), step("Next", 1), shutter);
  }

  // The cells that are shown and broken in some way, in reading order
  const notable = () => visible().flatMap((row) => links(row).slice(1))
    .filter((link) => link && ["fail", "known", "should"].some((name) => link.classList.contains(name)))
    .map((link) => link.getAttribute("href").slice(1));

  function about(cell, world, run) {
    const [verdict, judged, broken, blamed, declined, visited, reachable, values, miss, also] = data.cells[cell];
    const facts = [];
    if (judged) {
      const against = blamed === broken ? "" : `, of which ${blamed} count against the run`;
      const outcome = broken ? `broken in ${broken}${against}` : "never broken";
      facts.push(`Judged in ${plural(judged, "example")}, ${outcome}.`);
    }
    if (declined) facts.push(`In ${plural(declined, "example")} it was unsupported: declined, or not to be observed.`);
    if (judged && reachable !== null) {
      facts.push(`It was judged in ${visited} of ${reachable} cells in which it could be; a cell is a dtype, layer, procedure, combination of flags, batch rank and pair of layouts.`);
    }
    if (verdict === "pass") facts.push(worth(values, miss));
    if (verdict === "not run") facts.push(...(run.missing.length ? run.missing : ["No example came to it."]));
    if (verdict === "unsupported") facts.push(...reasons(run, world, data.clauses[split(cell).clause][3]));
    const mark = verdict.replace(" ", "-");
    const nodes = [
      make("p", { className: "verdict" }, make("span", { className: `mark ${mark}`, ariaHidden: "true" }, data.marks[verdict]), verdict),
      make("ul", { className: "facts" }, ...facts.map((fact) => make("li", {}, fact))),
    ];
    if (also) {
      const links = also.map((other) => make("a", { href: `#${other}` }, other.split("@")[0]));
      nodes.push(make("p", { className: "also" }, "Broken by the smallest case of ", ...links.flatMap((link, n) => (n ? [", ", link] : [link])), "."));
    }
    const finding = document.getElementById(cell);
    if (finding && finding.classList.contains("finding")) {
      nodes.push(...[...finding.querySelector(".body").children].map((child) => child.cloneNode(true)));
    }
    return nodes;
  }

  function worth(values, miss) {
    if (miss === null) return "No bound is stated on what such a pass misses.";
    if (miss >= 1) return `No bound on what one draw misses: too few values, |S| = ${values}.`;
    return `What a pass is worth: the weakest of these examples misses ${data.fault}, with probability at most ${miss.toPrecision(2)} (Schwartz-Zippel, |S| = ${values} values or more).`;
  }

  function reasons(run, world, layer) {
    const mine = run.declined.filter((entry) => entry[2] === world && (!layer || entry[1] === layer));
    const told = new Map();
    for (const [reason, where, , examples] of mine) told.set(reason, [...(told.get(reason) || []), `${where} ${examples}`]);
    return [...told].map(([reason, places]) => `${reason} (examples: ${places.join(", ")})`);
  }

  function elsewhere(clause, cell) {
    const line = (run) => make("tr", {}, make("th", { scope: "row" }, run.name), ...data.worlds.map((world) => {
      const other = `${clause}@${world}@${run.slug}`;
      const told = data.cells[other];
      if (!told) return make("td", {}, "");
      const words = `${data.marks[told[0]]} ${told[0]}`;
      return make("td", {}, other === cell ? make("strong", {}, words) : make("a", { href: `#${other}` }, words));
    }));
    const head = make("tr", {}, make("th", { scope: "col" }, "world size"), ...data.worlds.map((world) => make("th", { scope: "col" }, String(world))));
    return make("section", {}, make("h4", {}, "This clause elsewhere"), make("table", { className: "elsewhere", ariaLabel: "This clause elsewhere" }, head, ...data.runs.map(line)));
  }

  function visit(cell) {
    go({ ...chosen(), cell }, !panel.open);
    open(cell);
  }

  panel.addEventListener("cancel", (event) => {
    event.preventDefault();
    close();
  });
  panel.addEventListener("click", (event) => {
    if (event.target === panel) close();
  });

  // Every link to a cell or a clause opens the panel, no other one changes the address; every Copy button copies what
  // stands before it

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".copy");
    if (button) copy(button);
    const link = event.target.closest('a[href^="#"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const to = decoded(link.getAttribute("href").slice(1));
    event.preventDefault();
    if (exists(to)) visit(to);
    else document.getElementById(to)?.focus();
  });

  async function copy(button) {
    const text = button.previousElementSibling.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    say("Copied");
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  }

  function follow() {
    const state = chosen();
    enter(state);
    const told = show(state);
    if (state.cell && exists(state.cell)) open(state.cell);
    else shut();
    return told;
  }

  addEventListener("popstate", follow);
  addEventListener("hashchange", follow);
  const told = follow();
  if (location.hash) say(told);
})();
