package storekit

import (
	"crypto/sha256"
	"encoding/hex"
)

// This file has the keys that a [Backend] gets. They have no more than the letters A to Z in
// both cases, digits and these: / = - _ and periods. Two limiter keys never get one backend
// key, and two prefixes never share one.
//
// A key is the escaped prefix, a slash, and the escaped key of the limiter:
//
//	login/203.0.113.7
//	login/alice=40example.com
//
// Each other byte is written as = and two hexadecimal digits, and so is a period that does
// not stand between two bytes that are written as they are: some backends refuse a name that
// begins or ends with one. A slash is always escaped, so the only one is the separator. A key of more than maxKey
// bytes is written as =sha256= and its hash, which is no escape.

// maxKey is the longest key that is not hashed. Its escaped form has 384 bytes at most, and
// a backend key with an escaped prefix at most 577.
const maxKey = 128

// backendKey returns the key of a record.
func backendKey(prefix, key string) string {
	b := append(appendEscaped(nil, prefix), '/')
	if len(key) <= maxKey {
		return string(appendEscaped(b, key))
	}
	sum := sha256.Sum256([]byte(key))
	return string(hex.AppendEncode(append(b, "=sha256="...), sum[:]))
}

func appendEscaped(b []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if isPlain(c) || c == '.' && 0 < i && i+1 < len(s) && isPlain(s[i-1]) && isPlain(s[i+1]) {
			b = append(b, c)
		} else {
			b = append(b, '=', digits[c>>4], digits[c&15])
		}
	}
	return b
}

// isPlain reports whether a byte is written as it is wherever it is.
func isPlain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
