// Fetches the page every 5 seconds and puts its parts with data-live into place, without
// moving anything: nodes stay, and a list keeps its order while somebody points at it or has the
// focus in it. Without this script the page is complete; it is only not refreshed.
'use strict';

const every = 5000;
const pause = document.getElementById('pause');
const stale = document.querySelector('.stale');
let paused = false;
let busy = false;

pause.hidden = false;
pause.addEventListener('click', () => {
	paused = !paused;
	pause.setAttribute('aria-pressed', String(paused));
	pause.textContent = paused ? 'Paused' : 'Pause';
	refresh();
});

// rows returns the children of a list that have a name.
const rows = node => [...node.children].filter(child => child.dataset && child.dataset.row !== undefined);
const names = node => rows(node).map(row => row.dataset.row).join('\n');

// update makes a node like a fresh one.
function update(node, fresh) {
	if (node.nodeName !== fresh.nodeName) {
		node.replaceWith(fresh);
		return;
	}
	if (node.nodeType !== Node.ELEMENT_NODE) {
		if (node.data !== fresh.data) node.data = fresh.data;
		return;
	}
	if (rows(node).length && names(node) !== names(fresh) && node.matches(':hover, :focus-within')) {
		const byName = new Map(rows(fresh).map(row => [row.dataset.row, row]));
		for (const row of rows(node)) {
			if (byName.has(row.dataset.row)) update(row, byName.get(row.dataset.row));
		}
		return;
	}
	for (const {name} of [...node.attributes]) {
		if (!fresh.hasAttribute(name)) node.removeAttribute(name);
	}
	for (const {name, value} of fresh.attributes) {
		if (node.getAttribute(name) !== value) node.setAttribute(name, value);
	}
	const now = [...node.childNodes], then = [...fresh.childNodes];
	now.slice(then.length).forEach(child => child.remove());
	then.forEach((child, i) => {
		if (i < now.length) update(now[i], child);
		else node.append(child);
	});
}

async function refresh() {
	if (busy || paused || document.hidden) return;
	busy = true;
	try {
		const answer = await fetch(location.href, {headers: {Accept: 'text/html'}, redirect: 'error'});
		if (!answer.ok) throw new Error(answer.status);
		const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
		for (const node of document.querySelectorAll('[data-live]')) {
			const fresh = page.getElementById(node.id);
			if (fresh) update(node, fresh);
		}
		if (stale.textContent) stale.textContent = '';
	} catch {
		stale.textContent = 'Not refreshed: the server does not answer.';
	}
	busy = false;
}

setInterval(refresh, every);
document.addEventListener('visibilitychange', refresh);
