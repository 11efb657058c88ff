// Draws the figures beside it in the page. Colours of text and grid come from the style sheet, so that
// light, dark and print need no redrawing.
(() => {
  const config = { displayModeBar: false, responsive: true };
  const figures = [...document.querySelectorAll(".plot")];
  for (const figure of figures) {
    const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
    figure.querySelector("script").remove();
    Plotly.newPlot(figure, data, layout, config);
  }

  // Paper is narrower than most windows, and the figures are drawn to the window's width.
  const paper = { pair: 310, single: 640 };
  addEventListener("beforeprint", () => {
    for (const figure of figures) Plotly.relayout(figure, { width: paper[figure.dataset.paper] });
  });
  addEventListener("afterprint", () => {
    for (const figure of figures) Plotly.relayout(figure, { width: null, autosize: true });
  });

  for (const button of document.querySelectorAll("button[data-copies]")) {
    const block = document.getElementById(button.dataset.copies);
    button.hidden = false;
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(block);
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected: copy with Ctrl-C"; // no clipboard for a file opened from disk
      }
    });
  }
})();
