//! The files of `ui/`, which are part of the binary.

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each file.
        pub(super) const FILES: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../ui/", $name)))),*
        ];
    };
}

files![
    "api.js",
    "app.js",
    "format.js",
    "html.js",
    "icon.svg",
    "index.html",
    "page-apps.js",
    "page-dead-letters.js",
    "page-fleet.js",
    "page-health.js",
    "page-overview.js",
    "page-queues.js",
    "page-streams.js",
    "parts.js",
    "style.css",
    "theme.js",
    "vendor-hooks.js",
    "vendor-htm.js",
    "vendor-licenses.txt",
    "vendor-preact.js",
];
