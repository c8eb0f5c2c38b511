"use strict";

// Large tables: read the rows from JSON beside the table and show one page of the matching rows.
const ROWS_OF_A_PAGE = 100;

for (const table of document.querySelectorAll("table[data-rows]")) {
  const { columns } = JSON.parse(document.getElementById(table.dataset.rows).textContent);
  const cell = ({ values, places }, row) => (places ? values[places[row]] : values[row]);
  const count = Math.max(...columns.map(({ values, places }) => (places ?? values).length));
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const form = document.querySelector(`form[data-pages="${table.id}"]`);
  const [words, output] = [form.querySelector("input"), form.querySelector("output")];
  const [previous, next] = form.querySelectorAll("button");
  const whole = Array.from({ length: count }, (_, row) => columns.map((column) => cell(column, row)).join("\n").toLowerCase());
  const chosen = new Map();
  let order = whole.map((_, row) => row), matching = order, first = 0;

  const show = () => {
    body.replaceChildren(...matching.slice(first, first + ROWS_OF_A_PAGE).map((row) => {
      const line = document.createElement("tr");
      columns.forEach((column, i) => {
        const place = line.insertCell(), value = cell(column, row);
        place.className = headings[i].className;
        if (["pass", "warn", "fail"].includes(value)) {
          const badge = document.createElement("span");
          badge.className = `badge ${value}`;
          badge.textContent = value;
          place.append(badge);
        } else place.textContent = value;
      });
      return line;
    }));
    const last = Math.min(first + ROWS_OF_A_PAGE, matching.length);
    output.textContent = `rows ${matching.length && first + 1} to ${last} of ${matching.length}` + (matching.length < count ? ` (of ${count} in all)` : "");
    previous.disabled = first === 0;
    next.disabled = last === matching.length;
  };
  const update = () => {
    const typed = words.value.toLowerCase().split(/\s+/);
    matching = order.filter((row) =>
      typed.every((word) => whole[row].includes(word)) &&
      [...chosen].every(([column, select]) => !select.value || cell(columns[column], row) === select.value));
    first = 0;
    show();
  };
  const turn = (pages) => {
    first += pages * ROWS_OF_A_PAGE;
    show();
  };

  headings.forEach((heading, column) => {
    const name = heading.textContent, button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const keys = order.map((row) => number(cell(columns[column], row)));
      const numeric = keys.some((value) => !Number.isNaN(value));
      const pairs = order.map((row, i) => [row, keys[i]]);
      pairs.sort(([one, x], [other, y]) => {
        if (!numeric) return sign * cell(columns[column], one).localeCompare(cell(columns[column], other));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return x === y ? 0 : sign * (x < y ? -1 : 1);
      });
      order = pairs.map(([row]) => row);
      update();
    });
    const values = columns[column].places ? columns[column].values : [...new Set(columns[column].values)];
    if (!("choice" in heading.dataset) || values.length < 2) return;
    const label = document.createElement("label"), select = document.createElement("select");
    label.append(name, select);
    select.name = name;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.addEventListener("change", update);
    chosen.set(column, select);
    form.insertBefore(label, previous);
  });
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  words.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}
