package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// resetServer is a process of examples/password-reset.
type resetServer struct {
	*testing.T
	binary, dir, addr, limit string
	cmd                      *exec.Cmd
	log                      *logBuffer
}

// logs waits until the server has logged a text this many times since its start.
func (s *resetServer) logs(text string, times int) {
	s.Helper()
	require.Eventually(s, func() bool { return strings.Count(s.log.String(), text) == times },
		time.Minute, 10*time.Millisecond, "want %d times %q in the log:\n%s", times, text, s.log)
}

// startResetServer builds the server, and runs it on a free port until the test ends.
func startResetServer(t *testing.T, limit string) *resetServer {
	s := &resetServer{T: t, binary: filepath.Join(t.TempDir(), "server"), dir: t.TempDir(), limit: limit}
	build := exec.Command("go", "build", "-o", s.binary, "./examples/password-reset")
	build.Dir = filepath.Join("..", "..") // the root module
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, free.Close())
	s.addr = free.Addr().String()
	s.start()
	t.Cleanup(func() { s.end(syscall.SIGKILL) })
	return s
}

// start runs the program, and returns when it answers.
func (s *resetServer) start() {
	s.Helper()
	s.log = new(logBuffer)
	s.cmd = exec.Command(s.binary, "-addr", s.addr, "-limit", s.limit, "-dir", s.dir)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	require.NoError(s, s.cmd.Start())
	require.Eventually(s, func() bool {
		resp, err := http.Get("http://" + s.addr)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	}, time.Minute, 20*time.Millisecond, "it does not answer: %s", s.log)
}

// end sends the server a signal and waits for its end.
func (s *resetServer) end(sig syscall.Signal) {
	s.cmd.Process.Signal(sig)
	s.cmd.Wait()
}

// kill ends the server without a warning. It waits first, because the server may lose what
// it has counted in the last tenth of a second, and longer on a busy machine.
func (s *resetServer) kill() {
	time.Sleep(3 * time.Second)
	s.end(syscall.SIGKILL)
}

// browser opens a window of a phone's size.
func browser(t *testing.T, more ...chromedp.ExecAllocatorOption) context.Context {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("RATELIMIT_REQUIRE_CHROMIUM") != "" {
			t.Fatal("chromium is not installed, and RATELIMIT_REQUIRE_CHROMIUM is set")
		}
		t.Skip("chromium is not installed: on Debian, apt-get install chromium")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(390, 700), chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true), chromedp.WSURLReadTimeout(2*time.Minute))
	if os.Geteuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	opts = append(opts, more...)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	// The browser lives as long as the context of the first call, so that one has no deadline.
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(390, 700, chromedp.EmulateScale(2), chromedp.EmulateMobile)))
	ctx, cancel = context.WithTimeout(ctx, 10*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// page is the page in the browser.
type page struct {
	*testing.T
	ctx context.Context
}

// do runs actions in the page. An error ends the test.
func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	require.NoError(p, chromedp.Do(p.ctx, actions...))
}

type css = chromedp.CSS

// get runs an action in the page and returns its value. An error ends the test.
func get[T any](p *page, action chromedp.Action[T]) T {
	p.Helper()
	v, err := chromedp.Run(p.ctx, action)
	require.NoError(p, err)
	return v
}

// openModal opens the modal after the page has loaded.
func (p *page) openModal() {
	p.Helper()
	p.do(chromedp.Click(css("#open")), chromedp.WaitVisible(css("#modal")))
}

func (p *page) closeModal() {
	p.Helper()
	p.do(chromedp.Click(css("#close")), chromedp.WaitNotVisible(css("#modal")))
}

// send asks for a code, and waits until the page confirms it.
func (p *page) send(email string) {
	p.Helper()
	p.do(chromedp.WaitEnabled(css("#send")), chromedp.Evaluate[chromedp.Void](`document.querySelector('#email').value = ''`), chromedp.SendKeys(css("#email"), email), chromedp.Click(css("#send")))
	p.waitFor("#note", "A code is on its way to "+email)
}

// waitFor waits until an element is visible and has a text.
func (p *page) waitFor(selector, text string) {
	p.Helper()
	get(p, chromedp.Poll[bool](fmt.Sprintf(`(e => e.checkVisibility() && e.innerText.includes(%q))(document.querySelector(%q))`, text, selector),
		chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(time.Minute)))
}

// refused checks that the page shows the block, the time that is left, and no button. It
// also asks the server directly, which must refuse, too. It returns Retry-After.
func (p *page) refused() (seconds int) {
	p.Helper()
	p.waitFor("#blocked", "until you can ask for the next one")
	require.Regexp(p, `^(\d:)?\d\d:\d\d$`, get(p, chromedp.Text(css("#clock"))))
	require.False(p, get(p, chromedp.Evaluate[bool](`document.querySelector('#send').checkVisibility()`)), "the button is there")
	answer := get(p, chromedp.Evaluate[[]int](`fetch('/codes', {method: 'POST', body: new URLSearchParams({email: 'fourth@example.com'})})
		.then(r => [r.status, Number(r.headers.get('Retry-After'))])`, chromedp.EvalAwaitPromise))
	require.Equal(p, http.StatusTooManyRequests, answer[0], "a fourth code is sent")
	require.Positive(p, answer[1])
	return answer[1]
}

// screenshot saves the whole page as an artifact (go test -artifacts).
func (p *page) screenshot(name string) {
	p.Helper()
	png := get(p, chromedp.FullScreenshot(100))
	file := filepath.Join(p.ArtifactDir(), name+".png")
	require.NoError(p, os.WriteFile(file, png, 0o600))
	p.Logf("screenshot: %s", file)
}

// TestFormStaysClosedThroughReloadAndRestart refreshes the page of a form that is blocked, and
// restarts its server after SIGKILL and after SIGTERM.
func TestFormStaysClosedThroughReloadAndRestart(t *testing.T) {
	p := &page{t, browser(t)}
	s := startResetServer(t, "3/1h fixed")
	p.do(chromedp.Navigate("http://" + s.addr))
	s.logs("state=created counters=0", 2)
	p.openModal()
	for i := range 3 {
		p.send(fmt.Sprintf("ada+%d@example.com", i))
		if i == 0 {
			p.screenshot("1-sent")
		}
	}
	s.logs("code sent", 3)
	p.refused()

	p.closeModal()
	p.do(chromedp.Reload())
	p.openModal()
	p.refused()

	s.kill()
	s.start()
	s.logs("store=reset-address state=restored counters=1", 1)
	s.logs("store=reset-email state=restored counters=3", 1)
	p.do(chromedp.Reload())
	p.openModal()
	p.refused()

	s.end(syscall.SIGTERM)
	s.start()
	s.logs("store=reset-address state=restored counters=1", 1)
	p.do(chromedp.Reload())
	p.openModal()
	require.Less(t, p.refused(), 3600)
	p.screenshot("2-refused")
	s.logs("code sent", 0)
}

// TestFormOpensWhenItsWindowEnds keeps the page of a blocked form open. The form opens when the
// window of the first code ends, though the server was restarted.
func TestFormOpensWhenItsWindowEnds(t *testing.T) {
	const window, between = 30, 3
	p := &page{t, browser(t)}
	s := startResetServer(t, fmt.Sprintf("3/%ds fixed", window))
	p.do(chromedp.Navigate("http://" + s.addr))
	p.openModal()
	first := time.Now()
	p.send("ada@example.com")
	time.Sleep(between * time.Second)
	p.send("grace@example.com")
	p.send("edsger@example.com")
	require.LessOrEqual(t, p.refused(), window-between, "the window is not that of the first code")

	s.kill()
	s.start()
	p.do(chromedp.Reload())
	p.openModal()
	require.LessOrEqual(t, p.refused(), window-between)

	p.do(chromedp.WaitVisible(css("#send")))
	require.GreaterOrEqual(t, time.Since(first), window*time.Second)
	p.screenshot("3-open-again")
	p.send("barbara@example.com")
	s.logs("code sent", 1)
}
