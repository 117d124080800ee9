// All visible text of a page whose contrast with what lies behind it is below what WCAG 2 asks for (AA): 4.5, of large text 3.
() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const colour = text => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const dark = getComputedStyle(document.documentElement).colorScheme.includes('dark') && matchMedia('(prefers-color-scheme: dark)').matches;
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(colour(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), dark ? [18, 18, 18, 1] : [255, 255, 255, 1]);
  };
  const found = [];
  const look = (element, text, style) => {
    const behind = ground(element), size = parseFloat(style.fontSize);
    const ink = colour(element.closest('svg') ? style.fill : style.color);
    for (let e = element; e; e = e.parentElement) ink[3] *= parseFloat(getComputedStyle(e).opacity);
    const needed = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700) ? 3 : 4.5;
    const reached = ratio(over(ink, behind), behind);
    looked += 1;
    if (reached < needed) found.push(`${text.slice(0, 40)}: ${reached.toFixed(2)}, ${ink.map(Math.round)} on ${behind.map(Math.round)}`);
  };
  let looked = 0;
  const seen = (element, box) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && box.width > 1 && box.height > 1;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest('script, style, noscript, :disabled, [aria-disabled="true"]')) continue;
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    if (seen(element, range.getBoundingClientRect())) look(element, text, getComputedStyle(element));
  }
  for (const field of document.querySelectorAll('input, textarea')) {
    if (field.disabled || !seen(field, field.getBoundingClientRect()) || ['checkbox', 'radio', 'range'].includes(field.type)) continue;
    if (field.value) look(field, field.value, getComputedStyle(field));
    else if (field.placeholder) look(field, field.placeholder, getComputedStyle(field, '::placeholder'));
  }
  return { looked, found };
}
