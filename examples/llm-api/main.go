// Command llm-api serves the answers of a language model, which only repeats its prompt.
// Each client has two streams at the same time, 1,000 tokens per minute, and 20,000 per
// month. An answer is charged when it is over, because nobody knows its length before.
//
//	go run ./examples/llm-api
package main

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"log"
	"net/http"
	"strings"
	"time"

	"github.com/ratelimit-go/ratelimit"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "`address` to listen on")
	flag.Parse()
	a := &api{clients: map[string]string{"ada-key": "ada", "bob-key": "bob"}, model: parrot}
	a.limiter = ratelimit.Must(ratelimit.New("llm", ratelimit.Options{Limits: limits, Key: a.clientKey}))
	fmt.Printf(usage, *addr)
	server := &http.Server{Addr: *addr, Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(server.ListenAndServe())
}

// parrot says the prompt twenty times, at ten words per second.
func parrot(ctx context.Context, prompt string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for range 20 {
			for word := range strings.FieldsSeq(prompt) {
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
					return
				}
				if !yield(word) {
					return
				}
			}
		}
	}
}

const usage = `One answer:

  curl -iN -H 'X-API-Key: ada-key' 'http://%[1]s/complete?prompt=pretty+polly'

Three at the same time, of which one is denied:

  for i in 1 2 3; do curl -sN -H 'X-API-Key: ada-key' 'http://%[1]s/complete?prompt=pretty+polly' & done; wait

What is left:

  curl -s -H 'X-API-Key: ada-key' http://%[1]s/usage

`
