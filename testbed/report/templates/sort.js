// A click on a heading sorts its table by that column; another click, the other way. Empty cells stay last.
"use strict";
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.querySelectorAll("thead th")];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const upwards = heading.getAttribute("aria-sort") !== "ascending";
      const numeric = heading.classList.contains("number");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return upwards ? order : -order;
      });
      table.tBodies[0].append(...rows);
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    });
  });
}
