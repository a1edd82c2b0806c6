// Before / after slider, and a zoom for figures (click, or Enter on a focused figure; Esc closes).
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".compare input").forEach((input) => {
    const show = () => input.parentElement.style.setProperty("--cut", `${input.value}%`);
    input.addEventListener("input", show);
    show();
  });
  const dialog = document.createElement("dialog");
  dialog.className = "zoom";
  dialog.addEventListener("click", () => dialog.close());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") dialog.close(); });
  document.body.appendChild(dialog);
  document.querySelectorAll(".cell_output img").forEach((image) => {
    const open = () => { dialog.replaceChildren(image.cloneNode()); dialog.showModal(); };
    image.tabIndex = 0;
    image.addEventListener("click", open);
    image.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  });
});
