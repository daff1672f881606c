"use strict";
(() => {
  const small = (image) => image.naturalWidth > 0 && image.naturalWidth <= 64;
  const pixels = (image) => image.classList.toggle("pixels", small(image));
  const loaded = (event) => { if (event.target.matches?.(".thumb img, dialog img")) pixels(event.target); };
  document.addEventListener("load", loaded, true);
  document.querySelectorAll(".thumb img").forEach(pixels);

  // tables: the first click sorts numbers from the largest and texts from A; cells without a number stay last
  for (const button of document.querySelectorAll("thead th button")) {
    button.addEventListener("click", () => {
      const header = button.parentElement, table = header.closest("table"), body = table.tBodies[0];
      const numeric = header.classList.contains("number"), column = header.cellIndex;
      const now = header.getAttribute("aria-sort");
      const other = now === "ascending" ? "descending" : "ascending";
      const order = now ? other : numeric ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => (numeric ? row.cells[column].dataset.sort : row.cells[column].textContent.trim());
      const rows = [...body.rows].sort((one, other) => {
        const a = key(one), b = key(other);
        if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
        return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
      });
      for (const cell of header.parentElement.cells) cell.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      body.append(...rows);
    });
  }

  // image browser
  const stage = document.getElementById("stage"), filter = document.getElementById("filter");
  const show = (id) => {
    const panel = document.getElementById(`class-${id}`);
    if (panel) stage.replaceChildren(panel.content.cloneNode(true));
    return panel !== null;
  };
  if (stage) {
    const choices = [...document.querySelectorAll('input[name="class"]')];
    for (const choice of choices) choice.addEventListener("change", () => show(choice.value));
    const state = document.getElementById("found");
    filter.addEventListener("input", () => {
      const words = filter.value.trim().toLowerCase();
      let found = 0;
      for (const choice of choices) {
        const label = choice.parentElement;
        label.hidden = !label.dataset.words.includes(words);
        if (!label.hidden) found += 1;
      }
      state.textContent = words ? `${found} of ${choices.length} classes` : "";
    });
    const chosen = choices.find((choice) => choice.checked);
    if (chosen) show(chosen.value);
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-class]");
      const choice = link && choices.find((other) => other.value === link.dataset.class);
      if (!choice) return;
      filter.value = "";
      filter.dispatchEvent(new Event("input"));
      choice.checked = true;
      show(choice.value);
    });
  }

  // two rows side by side: the strips of both, from the chosen class
  const pair = document.getElementById("pair");
  if (pair) {
    const [first, second, group] = ["first", "second", "class"].map((id) => document.getElementById(`pair-${id}`));
    const strip = (panel, choice) => {
      const found = panel.querySelector(`.strip[data-row="${choice.value}"]`);
      if (found) return found.cloneNode(true);
      const missing = document.createElement("section"), title = document.createElement("h4");
      const text = document.createElement("p");
      missing.className = "strip";
      title.textContent = choice.selectedOptions[0].textContent;
      text.textContent = "No image of this class.";
      missing.append(title, text);
      return missing;
    };
    const compare = () => {
      const panel = document.getElementById(`class-${group.value}`).content;
      pair.replaceChildren(strip(panel, first), strip(panel, second));
    };
    for (const choice of [first, second, group]) choice.addEventListener("change", compare);
    compare();
  }

  // details of an image; a modal dialog closes on Escape and returns the focus by itself
  const dialog = document.getElementById("details");
  if (!dialog) return;
  const picture = dialog.querySelector("img"), title = dialog.querySelector("h2");
  const facts = dialog.querySelector("dl");
  let current = null;
  const fill = (thumb) => {
    current = thumb;
    const image = thumb.querySelector("img");
    picture.src = image.src;
    picture.alt = title.textContent = image.alt;
    facts.replaceChildren(...JSON.parse(thumb.dataset.details).flatMap(([name, value]) => {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      if (/^https?:\/\//.test(value)) {
        const link = document.createElement("a");
        link.href = link.textContent = value;
        link.rel = "noopener noreferrer nofollow";
        link.target = "_blank";
        text.append(link);
      } else text.textContent = value;
      return [term, text];
    }));
  };
  const step = (by) => {
    const place = current.closest("#stage, #pair") ?? document;
    const thumbs = [...place.querySelectorAll(".thumb")];
    fill(thumbs[(thumbs.indexOf(current) + by + thumbs.length) % thumbs.length]);
  };
  document.addEventListener("click", (event) => {
    const thumb = event.target.closest(".thumb");
    if (thumb) { fill(thumb); dialog.showModal(); }
    if (event.target === dialog) dialog.close();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  for (const button of dialog.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  }
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
})();
