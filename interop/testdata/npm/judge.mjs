// Runs the npm packages for the tests in Go. Each line of the standard input is a job in
// JSON: {"id": 1, "what": "lists", "with": ...}. Its result is a line of the standard
// output: {"id": 1, "result": ...} or {"id": 1, "error": "..."}. Jobs run at the same time.
import { AsyncLocalStorage } from 'node:async_hooks'
import { createInterface } from 'node:readline'

// A client that is to wait for an hour cannot be waited for. So if a job has set a timer of
// ten seconds or more, and it has not cleared it two seconds later, this is where the job
// ends: its result is the timer's milliseconds. Timeouts of requests do not get that old,
// because the server answers at once. A timer above 2^31-1 ms is left to Node.js, which
// lets it go off after 1 ms.
const jobs = new AsyncLocalStorage()
const setTimer = globalThis.setTimeout
globalThis.setTimeout = (f, ms, ...args) => {
	const end = jobs.getStore()
	return end && ms >= 10_000 && ms < 2 ** 31 ? setTimer(end, 2_000, { waitsFor: ms }) : setTimer(f, ms, ...args)
}

const { default: axios } = await import('axios')
const { default: axiosRetry } = await import('axios-retry')
const { default: got } = await import('got')
const { default: ky } = await import('ky')
const { parseRateLimit } = await import('ratelimit-header-parser')
const { parseList } = await import('structured-headers')
const { Agent, RetryAgent, interceptors, request } = await import('undici')

const retrying = axios.create()
axiosRetry(retrying)

// Each client sends a request, with its default settings. undici gets an agent for each
// request: what it does on a connection belongs to the job that opened it.
const clients = {
	got: (url, method) => got(url, { method }),
	ky: (url, method) => ky(url, { method }),
	'undici, RetryAgent': (url, method) => request(url, { method, dispatcher: new RetryAgent(new Agent()) }),
	'undici, interceptors.retry': (url, method) => request(url, { method, dispatcher: new Agent().compose(interceptors.retry()) }),
	'axios with axios-retry': (url, method) => retrying.request({ url, method }),
}

const kinds = {
	// Sends a request. A client that gives up may fail: the server sees what it has done.
	request: ({ client, url, method }) =>
		new Promise((end) => {
			jobs.run(end, () => {
				const done = () => end({})
				clients[client](url, method).then(done, done)
			})
		}),

	// Parses structured fields that are lists. A byte sequence is returned as {"bytes": its base64}.
	lists: (fields) =>
		fields.map((field) =>
			parseList(field).map(([value, params]) => ({
				value,
				params: [...params].map(([name, v]) => [name, v instanceof ArrayBuffer ? { bytes: Buffer.from(v).toString('base64') } : v]),
			})),
		),

	// Reads sets of header fields.
	styles: (sets) =>
		sets.map((fields) => {
			const info = parseRateLimit(new Headers(fields))
			return info && {
				limit: info.limit,
				used: info.used,
				remaining: info.remaining,
				inSeconds: info.reset && (info.reset.getTime() - Date.now()) / 1000,
			}
		}),
}

createInterface({ input: process.stdin }).on('line', async (line) => {
	const { id, what, with: given } = JSON.parse(line)
	let answer
	try {
		answer = { id, result: (await kinds[what](given)) ?? null }
	} catch (error) {
		answer = { id, error: error.stack }
	}
	process.stdout.write(JSON.stringify(answer) + '\n')
}).on('close', () => process.exit())
