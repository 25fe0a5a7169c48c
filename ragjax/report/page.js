// Read-outs under the pointer, and open details on paper; the page is whole without either.
for (const plot of document.querySelectorAll(".plot[data-low]")) {
  const svg = plot.querySelector("svg");
  const readout = plot.querySelector(".readout");
  const cursor = svg.querySelector(".cursor");
  const low = Number(plot.dataset.low);
  const high = Number(plot.dataset.high);
  const lines = [...svg.querySelectorAll(".dots")].map((group) => ({
    key: group.classList[1],
    label: group.dataset.label,
    values: group.dataset.values.split(" ").filter(Boolean).map((pair) => {
      const at = pair.indexOf(":");
      return [Number(pair.slice(0, at)), pair.slice(at + 1)];
    }),
  }));
  const hide = () => {
    readout.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const x = low + share * (high - low);
    const rows = [];
    for (const line of lines) {
      if (!line.values.length || x > line.values[line.values.length - 1][0] * 1.02) continue;
      const nearest = line.values.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      const row = document.createElement("p");
      row.className = "key " + line.key;
      row.append(line.label + " ");
      row.append(Object.assign(document.createElement("b"), { textContent: nearest[1] }));
      rows.push(row);
    }
    if (!rows.length) return hide();
    const at = document.createElement("p");
    at.textContent = Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(x);
    readout.replaceChildren(at, ...rows);
    readout.hidden = false;
    readout.classList.toggle("flipped", share > 0.5);
    readout.style.left = share * 100 + "%";
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, share * 100 + "%");
    cursor.setAttribute("visibility", "visible");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
