// The words in which two captions differ: those outside of their longest common subsequence.

const TOKEN = /[\p{L}\p{N}\p{M}]+(?:['\u2019-][\p{L}\p{N}\p{M}]+)*|[^\s]/gu;
// Longer captions are marked as a whole: the table takes quadratic memory.
const MOST = 400;

// Tokens as {word, start, end}.
const tokens = (text) =>
  [...text.matchAll(TOKEN)].map((m) => ({ word: m[0], start: m.index, end: m.index + m[0].length }));

// For each token of both, whether it is in the common subsequence.
function common(a, b) {
  const kept = [a.map(() => false), b.map(() => false)];
  if (a.length > MOST || b.length > MOST) return kept;
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i][j] =
        a[i].word === b[j].word ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i].word === b[j].word) {
      kept[0][i++] = kept[1][j++] = true;
    } else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return kept;
}

// The text in pieces {text, changed}; changed tokens in a row are one piece.
function pieces(text, found, kept) {
  const cut = [];
  let place = 0;
  for (let i = 0; i < found.length; i++) {
    if (kept[i]) continue;
    const start = found[i].start;
    while (i + 1 < found.length && !kept[i + 1]) i++;
    if (place < start) cut.push({ text: text.slice(place, start), changed: false });
    cut.push({ text: text.slice(start, found[i].end), changed: true });
    place = found[i].end;
  }
  if (place < text.length) cut.push({ text: text.slice(place), changed: false });
  return cut;
}

// Both captions in pieces.
export function difference(first, second) {
  const [a, b] = [tokens(first), tokens(second)];
  const [keptA, keptB] = common(a, b);
  return [pieces(first, a, keptA), pieces(second, b, keptB)];
}
