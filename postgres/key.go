package postgres

import (
	"crypto/sha256"
	"encoding/hex"
)

// maxKey is the longest key that is stored in full. A longer one is stored as its SHA-256.
const maxKey = 128

// appendKey appends a key as it is stored: text without a zero byte, in any encoding. No two
// keys have the same text. A hash begins with %sha256:, which is no escape.
func appendKey(b []byte, key string) []byte {
	if len(key) > maxKey {
		sum := sha256.Sum256([]byte(key))
		return hex.AppendEncode(append(b, "%sha256:"...), sum[:])
	}
	const digits = "0123456789ABCDEF"
	for i := range len(key) {
		switch c := key[i]; {
		case c <= ' ', c >= 0x7f, c == '%', c == '"', c == '\\':
			b = append(b, '%', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}
