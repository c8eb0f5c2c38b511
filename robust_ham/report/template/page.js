"use strict";

// Choosers: show the items that match every select. An item without data for a select matches any
// value. Disable options that match no item.
for (const chooser of document.querySelectorAll("[data-chooser]")) {
  const selects = [...chooser.querySelectorAll(":scope > form select")];
  const items = [...chooser.querySelectorAll("[data-item]")];
  const update = () => {
    let left = items;
    for (const select of selects) {
      const values = new Set(left.map((item) => item.dataset[select.name]));
      const options = [...select.options];
      for (const option of options) option.disabled = !values.has(option.value);
      if (select.selectedOptions[0]?.disabled) select.value = options.find((o) => !o.disabled).value;
      left = left.filter((item) => [undefined, select.value].includes(item.dataset[select.name]));
    }
    for (const item of items) item.hidden = !left.includes(item);
  };
  for (const select of selects) select.addEventListener("change", update);
  chooser.querySelector(":scope > form").hidden = false;
  update();
}

// Sortable tables: click a heading to sort. Numbers sort by value; missing values come last.
const number = (text) => parseFloat(text.replace(/[\u202f×+]/g, "").replace("−", "-").replace("∞", "Infinity"));
const text = (row, column) => row.cells[column].textContent.trim();

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [row, text(row, column), number(text(row, column))]);
      const numeric = rows.some(([, , value]) => !Number.isNaN(value));
      rows.sort(([, one, x], [, other, y]) => {
        if (!numeric) return sign * one.localeCompare(other);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return x === y ? 0 : sign * (x < y ? -1 : 1);
      });
      body.append(...rows.map(([row]) => row));
    });
  });
}

// Filters: show the rows that contain every typed word and match every selected value.
for (const form of document.querySelectorAll("form[data-filter]")) {
  const table = document.getElementById(form.dataset.filter);
  const rows = [...table.tBodies[0].rows], words = form.querySelector("input"), count = form.querySelector("output");
  const chosen = new Map();
  const update = () => {
    const typed = words.value.toLowerCase().split(/\s+/);
    let left = 0;
    for (const row of rows) {
      const whole = row.textContent.toLowerCase();
      const fits = [...chosen].every(([column, select]) => !select.value || text(row, column) === select.value);
      row.hidden = !(fits && typed.every((word) => whole.includes(word)));
      left += !row.hidden;
    }
    count.textContent = `${left} of ${rows.length} rows`;
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const values = [...new Set(rows.map((row) => text(row, column)))];
    if (!("choice" in heading.dataset) || values.length < 2) return;
    const label = document.createElement("label"), select = document.createElement("select");
    label.append(heading.textContent, select);
    select.name = heading.textContent;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.addEventListener("change", update);
    chosen.set(column, select);
    form.insertBefore(label, count);
  });
  words.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}

// Copy buttons.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// Open all details before printing.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
