// Before the first paint: light or dark as the reader chose, or as the system has it.
const theme = localStorage.getItem("vlinders.theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
