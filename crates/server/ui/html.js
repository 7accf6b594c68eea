// Preact and htm under one name.
import { h, render } from "./vendor-preact.js";
import htm from "./vendor-htm.js";

export const html = htm.bind(h);
export { render };
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor-hooks.js";
