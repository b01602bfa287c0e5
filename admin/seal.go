package admin

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"sync"
)

// This file has the form in which keys are in links and forms. Keys are often personal data, and
// links end up in access logs and browser histories. So a link has the key encrypted, under a
// secret of this process. It also keeps the key from viewers that Options.KeyView hides it from.
//
// The same text always has the same form, so that a page that is fetched again has the same
// links. The nonce is made of the text, as in SIV (RFC 5297).

// A purpose keeps a sealed text from being used for another purpose.
type purpose byte

const (
	forKey    purpose = 'k' // a limiter's name, a NUL and a key
	forTyped  purpose = 't' // what was typed to find a key
	forNotice purpose = 'n' // a limiter's name, a NUL, a key, a NUL and a sentence about what was done
)

type sealer struct {
	box   cipher.AEAD
	nonce []byte // the key of the nonces' HMAC
}

// seals is of this process: links stay valid if the program makes a new handler.
var seals = sync.OnceValue(func() *sealer {
	secret := make([]byte, 64)
	rand.Read(secret) // it never fails
	block, err := aes.NewCipher(secret[:32])
	if err != nil {
		panic(err) // 32 bytes are right
	}
	box, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &sealer{box, secret[32:]}
})

// seal returns the form of a text in links and forms.
func seal(p purpose, text string) string {
	s := seals()
	mac := hmac.New(sha256.New, s.nonce)
	mac.Write([]byte{byte(p)})
	mac.Write([]byte(text))
	nonce := mac.Sum(nil)[:s.box.NonceSize()]
	return base64.RawURLEncoding.EncodeToString(s.box.Seal(nonce, nonce, []byte(text), []byte{byte(p)}))
}

// unseal returns the text of a form that this process has made for that purpose.
func unseal(p purpose, form string) (string, bool) {
	s := seals()
	b, err := base64.RawURLEncoding.DecodeString(form)
	if err != nil || len(b) < s.box.NonceSize() {
		return "", false
	}
	text, err := s.box.Open(nil, b[:s.box.NonceSize()], b[s.box.NonceSize():], []byte{byte(p)})
	return string(text), err == nil
}

// sealNotice returns the form of a sentence about what was done to a key, or to a limiter if the
// key is empty. It is good for the page of that key or limiter alone.
func sealNotice(limiter, key, sentence string) string {
	return seal(forNotice, limiter+"\x00"+key+"\x00"+sentence)
}

// unsealNotice returns the sentence, or "" if there is none about the key.
func unsealNotice(form, limiter, key string) string {
	text, _ := unseal(forNotice, form)
	sentence, ok := strings.CutPrefix(text, limiter+"\x00"+key+"\x00")
	if !ok {
		return ""
	}
	return sentence
}

func sealKey(limiter, key string) string { return seal(forKey, limiter+"\x00"+key) }

// unsealKey returns the limiter's name and the key. A name has no NUL.
func unsealKey(form string) (limiter, key string, ok bool) {
	text, ok := unseal(forKey, form)
	if !ok {
		return "", "", false
	}
	limiter, key, _ = strings.Cut(text, "\x00")
	return limiter, key, true
}
