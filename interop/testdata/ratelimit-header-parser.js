// Reads header sets, given as JSON by name, with the npm package
// ratelimit-header-parser, and prints as JSON what it finds in each.
const { parseRateLimit } = require('ratelimit-header-parser')

const found = {}
for (const [name, fields] of Object.entries(JSON.parse(process.argv[2]))) {
	const info = parseRateLimit(new Headers(fields))
	found[name] = info && {
		limit: info.limit,
		used: info.used,
		remaining: info.remaining,
		inSeconds: info.reset && (info.reset.getTime() - Date.now()) / 1000,
	}
}
console.log(JSON.stringify(found))
