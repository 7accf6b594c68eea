// Before the first paint: the chosen theme, if there is one.
try {
  const theme = localStorage.getItem("towpath.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the system decides.
}
