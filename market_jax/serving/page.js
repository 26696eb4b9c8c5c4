"use strict";
// The page of --task=serve: a query, conditions, ranked answers, and marks on them.

const at = (id) => document.getElementById(id);
const make = (tag, settings = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), settings);
  element.append(...children);
  return element;
};

let about = null;
let query = null; // {blob, name} of a file, or {id, name} of the gallery; and the file's digest
let asked = 0; // requests; only the last one's answer is shown
const marks = new Map(); // query digest -> {name, own: Map(picture id -> {answer, right})}

async function ask(path, settings) {
  const response = await fetch(path, settings);
  const found = await response.json().catch(() => ({}));
  if (response.ok) return found;
  const detail = found.detail;
  throw new Error(Array.isArray(detail)
    ? detail.map((e) => `${e.loc.at(-1)}: ${e.msg}`).join("; ") : detail || response.statusText);
}

function say(text, isError = false) {
  at("message").textContent = text;
  at("message").className = isError ? "error" : "";
}

function quote(text) {
  return `'${text.replaceAll("'", "''")}'`;
}

function where() {
  const parts = [...document.querySelectorAll("#filters select")]
    .filter((select) => select.value)
    .map((select) => `${select.name} = ${quote(select.value)}`);
  if (at("camid").value) parts.push(`camid = ${Number(at("camid").value)}`);
  const more = at("where").value.trim();
  if (more) parts.push(parts.length ? `(${more})` : more);
  return parts.join(" and ");
}

function showQuery(labels) {
  at("wears").replaceChildren(...Object.entries(labels).flatMap(([label, found]) => {
    const kind = found.probability < about.sure ? "unsure" : "";
    const percent = Math.round(100 * found.probability);
    const bar = make("div", { className: kind }, make("i"));
    bar.firstChild.style.width = `${percent}%`;
    return [
      make("span", { className: kind }, label.replaceAll("_", " ")), bar,
      make("span", { className: kind, title: `${percent} %` }, found.name),
    ];
  }));
}

function caption(answer, rank) {
  const parts = [];
  if (answer.distance !== null) parts.push(make("b", {}, `${rank}. `), answer.distance.toFixed(3));
  if (answer.camid >= 0) parts.push(parts.length ? make("br") : "", `camera ${answer.camid}`);
  if (answer.time >= 0) parts.push(make("br"), new Date(1000 * answer.time).toLocaleString());
  if (answer.wears) parts.push(make("br"), answer.wears);
  return make("figcaption", {}, ...parts);
}

function figure(answer, rank) {
  const image = make("img", { src: `/picture?id=${answer.id}`, alt: answer.name, loading: "lazy" });
  image.onerror = () => {
    image.replaceWith("the picture is no longer there, or has changed");
    shown.querySelector(".marks")?.remove();
  };
  const button = make("button", { className: "picture", title: `${answer.name}: find this person` }, image);
  button.onclick = () => choose({ id: answer.id, name: answer.name }, image.src);
  const shown = make("figure", { className: answer.same ? "same" : "" }, button, caption(answer, rank));
  const isElsewhere = answer.name.startsWith("/"); // not in the folder that marks name pictures by
  if (answer.distance !== null && !isElsewhere) shown.append(markButtons(answer));
  return shown;
}

function markButtons(answer) {
  const kinds = [["right", "right", true], ["wrong", "wrong", false]];
  const { digest, name } = query; // another one may be asked before a button is clicked
  const own = () => marks.get(digest)?.own || new Map();
  const buttons = kinds.map(([className, text, right]) => {
    const button = make("button", { className }, text);
    button.setAttribute("aria-pressed", String(own().get(answer.id)?.right === right));
    button.onclick = () => {
      const isSet = button.getAttribute("aria-pressed") === "true";
      const kept = own();
      if (isSet) kept.delete(answer.id);
      else kept.set(answer.id, { answer, right });
      marks.set(digest, { name, own: kept });
      for (const other of buttons) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(!isSet));
      countMarks();
    };
    return button;
  });
  return make("div", { className: "marks" }, ...buttons);
}

function allMarks() {
  return [...marks].flatMap(([digest, { name, own }]) =>
    [...own.values()].map((mark) => ({ digest, query: name, ...mark })));
}

// The digests of each person's pictures. Queries that share a right answer, or are one, show one person.
function people() {
  let found = [];
  for (const { digest, answer, right } of allMarks()) {
    if (!right) continue;
    const [same, others] = [true, false].map((shared) =>
      found.filter((ids) => (ids.has(digest) || ids.has(answer.id)) === shared));
    found = [...others, new Set([digest, answer.id, ...same.flatMap((ids) => [...ids])])];
  }
  return found;
}

function countMarks() {
  const found = allMarks();
  const right = found.filter((mark) => mark.right).length;
  const queries = new Set(found.map((mark) => mark.digest)).size;
  at("count").textContent = found.length
    ? `${right} right, ${found.length - right} wrong, of ${queries} queries; names are paths in ${about.folder}`
    : "No marks yet: say which answers are right and which are wrong.";
  at("save").disabled = at("clear").disabled = !found.length;
}

function field(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// A row for each picture. pid: the number of its person; 0, a stranger, where it is wrong alone
function marksAsCsv() {
  const known = people();
  const rows = new Map();
  for (const { query, answer, right } of allMarks()) {
    const pid = 1 + known.findIndex((ids) => ids.has(answer.id));
    if (right || !rows.has(answer.name)) {
      rows.set(answer.name, [answer.name, pid, answer.camid, pid ? 0 : 1, query]);
    }
  }
  return [["name", "pid", "camid", "rejected", "query"], ...rows.values()]
    .map((row) => row.map(field).join(",")).join("\n") + "\n";
}

function show(answers) {
  const figures = answers.map((answer, i) => figure(answer, i + 1));
  const near = answers.filter((answer) => answer.same).length; // the first ones; null is not said
  if (answers.length && answers[0].same !== null) {
    const { threshold, precision, judged } = about.same_person;
    const limit = `up to ${threshold.toFixed(3)}`;
    figures.splice(near, 0, make("div", { className: "limit", title: judged }, near
      ? `${limit} the same person: ${Math.round(100 * precision)} % of such pairs were`
      : `nobody here is near enough to be taken for the same person (${limit})`));
  }
  at("answers").replaceChildren(...figures);
}

async function search() {
  const number = ++asked;
  say("searching ...");
  try {
    const settings = new URLSearchParams({ where: where() });
    let answers;
    if (query && about.gallery) {
      settings.set("top_k", at("top_k").value || "20");
      settings.set("rerank", at("rerank").checked);
      if (query.id) settings.set("id", query.id);
      const sent = query.id ? {} : { method: "POST", body: query.blob };
      const found = await ask(`/search?${settings}`, sent);
      if (number !== asked) return;
      query.digest = found.id;
      showQuery(found.attributes);
      answers = found.answers;
    } else if (query) {
      const found = await ask("/describe", { method: "POST", body: query.blob });
      if (number !== asked) return;
      showQuery(found.attributes);
      answers = [];
    } else {
      settings.set("count", "60");
      answers = await ask(`/pictures?${settings}`);
      if (number !== asked) return;
    }
    show(answers);
    if (!about.gallery) say(query ? "" : "There is no gallery: a picture is described alone.");
    else if (!answers.length) say("No picture holds these conditions.");
    else if (query) say(`The ${answers.length} pictures that are most like it. Click one to look for it instead.`);
    else say("Some pictures of the gallery. Click one to find its person.");
  } catch (error) {
    if (number === asked) say(error.message, true);
  }
}

function choose(chosen, source) {
  query = chosen;
  at("answers").replaceChildren(); // those of another query
  at("wears").replaceChildren();
  at("drop").replaceChildren(make("img", { src: source, alt: chosen.name }));
  at("search").textContent = about.gallery ? "Search" : "Describe";
  window.scrollTo({ top: 0, behavior: "smooth" });
  search();
}

function chooseFile(file) {
  if (file) choose({ blob: file, name: file.name }, URL.createObjectURL(file));
}

function listen() {
  const drop = at("drop");
  drop.onclick = () => at("file").click();
  at("file").onchange = () => chooseFile(at("file").files[0]);
  for (const event of ["dragover", "drop"]) document.addEventListener(event, (e) => e.preventDefault());
  drop.addEventListener("dragover", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    chooseFile(event.dataTransfer.files[0]);
  });
  at("search").onclick = search;
  at("ask").addEventListener("change", search);
  at("clear").onclick = () => { marks.clear(); countMarks(); search(); };
  at("save").onclick = () => {
    const url = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
    make("a", { href: url, download: "marks.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };
}

async function start() {
  about = await ask("/about");
  const pictures = about.gallery ? `, ${about.pictures} pictures in ${about.gallery}` : ", no gallery";
  at("about").textContent = about.network + pictures;
  at("ask").hidden = at("footer").hidden = !about.gallery;
  at("filters").replaceChildren(...Object.entries(about.labels).map(([label, classes]) =>
    make("label", {}, label.replaceAll("_", " "), make("select", { name: label },
      make("option", { value: "" }, "any"), ...classes.map((name) => make("option", { value: name }, name))))));
  listen();
  await search();
}

start().catch((error) => say(error.message, true));
