package audit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ratelimit-go/ratelimit"
	"github.com/ratelimit-go/ratelimit/audit"
	"github.com/ratelimit-go/ratelimit/internal/filelock"
	"github.com/stretchr/testify/require"
)

func openFile(t *testing.T, name string) *audit.File {
	t.Helper()
	f, err := audit.OpenFile(name)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t *testing.T, f *audit.File, kinds ...audit.Kind) {
	t.Helper()
	var records []audit.Record
	for _, kind := range kinds {
		records = append(records, audit.Record{Kind: kind, Time: time.Unix(1_800_000_000, 0).UTC(), Service: "shop", Instance: "web-1"})
	}
	require.NoError(t, f.Write(t.Context(), records, true))
}

// kindsIn returns the kinds of the records in a file.
func kindsIn(t *testing.T, name string) (kinds string) {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		var r audit.Record
		require.NoError(t, json.Unmarshal([]byte(line), &r), "%q", line)
		kinds += string(r.Kind) + " "
	}
	return strings.TrimSpace(kinds)
}

func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openFile(t, name)
	write(t, f, "denied", "released")
	info, err := os.Stat(name)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	_, err = audit.OpenFile(name)
	require.ErrorContains(t, err, "is in use: give each process a file of its own")
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.ErrorIs(t, f.Write(t.Context(), nil, true), os.ErrClosed)

	f = openFile(t, name)
	write(t, f, "reset")
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, `{"kind":"denied","time":"2027-01-15T08:00:00Z","service":"shop","instance":"web-1"}
{"kind":"released","time":"2027-01-15T08:00:00Z","service":"shop","instance":"web-1"}
{"kind":"reset","time":"2027-01-15T08:00:00Z","service":"shop","instance":"web-1"}
`, string(text))

	_, err = audit.OpenFile(t.TempDir())
	require.Error(t, err)
}

// A file that is renamed is left alone from then on, and a new one begins.
func TestFileIsRotated(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	f := openFile(t, name)
	write(t, f, "denied")
	require.NoError(t, os.Rename(name, name+".1"))
	write(t, f, "released")
	require.Equal(t, "denied", kindsIn(t, name+".1"))
	require.Equal(t, "released", kindsIn(t, name))
	require.NoError(t, os.Remove(name))
	write(t, f, "reset")
	require.Equal(t, "reset", kindsIn(t, name))
}

// A line that was cut off, by a crash for example, is removed.
func TestFileWithACutLine(t *testing.T) {
	for name, cut := range map[string]string{"short": `{"kind":"rel`, "long": strings.Repeat("x", 200_000), "only": ""} {
		t.Run(name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "audit.jsonl")
			whole := `{"kind":"denied"}` + "\n"
			if cut == "" {
				whole, cut = "", `{"kind`
			}
			require.NoError(t, os.WriteFile(name, []byte(whole+cut), 0o600))
			write(t, openFile(t, name), "reset")
			require.Equal(t, strings.TrimSpace(map[bool]string{true: "denied"}[whole != ""]+" reset"), kindsIn(t, name))
		})
	}
}

// "Was 203.0.113.7 denied last Tuesday?" can be answered as long as the secret exists, also
// by a program that was started later.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	name, secretsFile := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "audit.secrets")
	open := func() (*audit.Trail, *audit.File) {
		f := openFile(t, name)
		secrets, err := audit.OpenSecrets(secretsFile, 90*24*time.Hour)
		require.NoError(t, err)
		trail, err := audit.New(audit.Options{Sink: f, Secrets: secrets})
		require.NoError(t, err)
		return trail, f
	}
	trail, f := open()
	for i := range 300 {
		e := denial("api", fmt.Sprint("key ", i))
		if i == 150 {
			e = denial("login", "203.0.113.7")
		}
		trail.Observe(t.Context(), e)
	}
	require.NoError(t, trail.Record(t.Context(), ratelimit.Event{Kind: ratelimit.EventReset, Time: time.Now(), Limiter: "login", Key: "203.0.113.7", Actor: "alice"}))
	require.NoError(t, trail.Close())
	require.NoError(t, f.Close())

	info, err := os.Stat(secretsFile)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	trail, _ = open()
	defer trail.Close()
	kinds := func(q audit.Query) (kinds []audit.Kind) {
		found, err := trail.Read(t.Context(), q)
		require.NoError(t, err)
		for _, r := range found {
			kinds = append(kinds, r.Kind)
		}
		return kinds
	}
	require.Equal(t, []audit.Kind{"released", "denied", "reset"}, kinds(audit.Query{Key: "203.0.113.7"}), "the newest first; the queue is behind calls of operators")
	require.Equal(t, []audit.Kind{"released"}, kinds(audit.Query{Key: "203.0.113.7", Most: 1}))
	require.Equal(t, []audit.Kind{"reset"}, kinds(audit.Query{Actor: "alice"}))
	require.Equal(t, []audit.Kind{"denied"}, kinds(audit.Query{Limiter: "login", Kind: "denied"}))
	require.Len(t, kinds(audit.Query{}), 100)
	require.Len(t, kinds(audit.Query{Most: 1000, Limiter: "api"}), 201, "100 episodes, and what was suppressed")
	require.Empty(t, kinds(audit.Query{Key: "203.0.113.8"}))
	require.Empty(t, kinds(audit.Query{From: time.Now().Add(time.Hour)}))
	require.Empty(t, kinds(audit.Query{To: time.Now().Add(-time.Hour)}))

	require.NoError(t, os.WriteFile(secretsFile, []byte("junk"), 0o600))
	_, err = audit.OpenSecrets(secretsFile, 90*24*time.Hour)
	require.ErrorContains(t, err, "does not hold secrets")
}

// Processes that share a file of secrets lose none of them.
func TestSecretsOfTwoProcesses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.secrets")
	open := func() *audit.FileSecrets {
		s, err := audit.OpenSecrets(name, 9*time.Hour)
		require.NoError(t, err)
		return s
	}
	at := func(s *audit.FileSecrets, hours int) (pseudonyms []string) {
		secrets, err := s.Secrets(t.Context(), time.Unix(int64(hours)*3600, 0))
		require.NoError(t, err)
		for i := range secrets {
			pseudonyms = append(pseudonyms, secrets[i].Pseudonym("key"))
		}
		return pseudonyms
	}
	a, b := open(), open()
	require.Equal(t, at(a, 0), at(b, 1), "the second one finds the secret of the first")
	first := at(a, 2)[0]
	second := at(b, 4)
	require.Len(t, second, 2)
	require.Equal(t, first, second[1])
	require.Equal(t, second, at(a, 5))
	require.Equal(t, second, at(open(), 6))
	require.Equal(t, second[0], at(a, 9)[1], "the first one is deleted")
	require.NotContains(t, at(open(), 9), first)

	require.NoError(t, os.RemoveAll(filepath.Dir(name)))
	for range 2 { // a secret that was not written is not used
		_, err := a.Secrets(t.Context(), time.Unix(20*3600, 0))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

// Processes that start at the same time, or renew the secret at the same time, use the same one,
// which is in the file.
func TestSecretsOfProcessesThatStart(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.secrets")
	for round := range 20 {
		now := time.Unix(int64(round)*24*3600, 0)
		var group sync.WaitGroup
		var secrets [4][]audit.Secret
		for i := range secrets {
			group.Go(func() {
				s, err := audit.OpenSecrets(name, 9*time.Hour)
				if err == nil {
					secrets[i], err = s.Secrets(t.Context(), now)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		for i := range secrets {
			require.Len(t, secrets[i], 1)
			require.Equal(t, secrets[0][0].Epoch, secrets[i][0].Epoch)
		}
	}
}

// A process that cannot get the lock says so, and uses no secret of its own.
func TestSecretsThatAreLocked(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.secrets")
	s, err := audit.OpenSecrets(name, 9*time.Hour)
	require.NoError(t, err)
	lock, err := os.Create(name + ".lock")
	require.NoError(t, err)
	if filelock.Lock(lock) == nil {
		second, err := os.Open(name + ".lock")
		require.NoError(t, err)
		defer second.Close()
		if filelock.Lock(second) == nil {
			t.Skip("this system has no locks for files")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Secrets(ctx, time.Now())
	require.ErrorContains(t, err, name+".lock")
	require.NoError(t, lock.Close())
	_, err = s.Secrets(t.Context(), time.Now())
	require.NoError(t, err)
}

// A key that JSON cannot hold is recorded and found in a form of its own.
func TestPlainKeys(t *testing.T) {
	f := openFile(t, filepath.Join(t.TempDir(), "audit.jsonl"))
	trail, err := audit.New(audit.Options{Sink: f, PlainKeys: true})
	require.NoError(t, err)
	keys := []string{"\xff", "\xfe", "<b>\x00\u202e", "\n{}"}
	for _, key := range keys {
		trail.Observe(t.Context(), denial("login", key))
	}
	require.NoError(t, trail.Close())
	for _, key := range keys {
		found, err := trail.Read(t.Context(), audit.Query{Key: key, Kind: "denied"})
		require.NoError(t, err)
		require.Len(t, found, 1, "%q", key)
	}
}

// Whatever an operator has done before the program is killed is in the trail.
func TestKilledAfterACall(t *testing.T) {
	if name := os.Getenv("RATELIMIT_AUDIT_FILE"); name != "" {
		resetForever(name)
		return
	}
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAfterACall$")
		cmd.Env = append(os.Environ(), "RATELIMIT_AUDIT_FILE="+name)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		var last string
		for range 20 {
			require.True(t, lines.Scan())
			last = lines.Text()
		}
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() { // what it has done in the meantime
			last = lines.Text()
		}
		_ = cmd.Wait()
		f := openFile(t, name)
		found, err := f.Read(t.Context(), audit.Query{Key: last, Kind: "reset"})
		require.NoError(t, err)
		require.NotEmpty(t, found, "the record of %q", last)
		require.Equal(t, audit.Intended, found[len(found)-1].Outcome)
		require.NoError(t, f.Close())
		kindsIn(t, name) // each line is whole
	}
}

// resetForever resets keys and prints the key of each Reset that has taken effect.
func resetForever(name string) {
	f, err := audit.OpenFile(name)
	if err != nil {
		panic(err)
	}
	trail, err := audit.New(audit.Options{Sink: f, PlainKeys: true})
	if err != nil {
		panic(err)
	}
	l, err := ratelimit.New("login", ratelimit.Options{Limits: []ratelimit.Limit{ratelimit.FixedWindow(5, time.Minute)}, Observe: trail.Observe, Audit: trail})
	if err != nil {
		panic(err)
	}
	for i := 0; ; i++ {
		key := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if err := l.Reset(ratelimit.WithActor(context.Background(), "alice"), key); err != nil {
			panic(err)
		}
		fmt.Println(key)
	}
}
