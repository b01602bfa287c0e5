package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// prometheusServer is a Prometheus that scrapes twice a second until the test ends.
type prometheusServer struct {
	*testing.T
	url string
}

// prometheusProgram returns the path of prometheus or promtool, or ends the test.
func prometheusProgram(t *testing.T, name string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		reason := fmt.Sprintf("no %s: install the package prometheus", name)
		if os.Getenv("RATELIMIT_REQUIRE_PROMETHEUS") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return program
}

// startPrometheus starts a Prometheus that scrapes the targets, which are host:port by
// job, and evaluates the rules of a file, if there is one.
func startPrometheus(t *testing.T, targets map[string]string, rules string, args ...string) *prometheusServer {
	t.Helper()
	program := prometheusProgram(t, "prometheus")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := free.Addr().String()
	require.NoError(t, free.Close())

	dir := t.TempDir()
	type object = map[string]any
	var scrapes []object
	for _, job := range slices.Sorted(maps.Keys(targets)) {
		scrapes = append(scrapes, object{"job_name": job, "static_configs": []object{{"targets": []string{targets[job]}}}})
	}
	config := object{
		"global":         object{"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
		"scrape_configs": scrapes,
	}
	if rules != "" {
		config["rule_files"] = []string{rules}
	}
	text, err := json.Marshal(config) // which is YAML, too
	require.NoError(t, err)
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, text, 0o600))

	log := new(logBuffer)
	cmd := exec.Command(program, append([]string{
		"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + addr, "--log.level=warn",
	}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus has logged:\n%s", log)
		}
	})
	p := &prometheusServer{t, "http://" + addr}
	require.Eventually(t, func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, time.Minute, 50*time.Millisecond, "it does not start: %s", log)
	return p
}

// get asks the API, and decodes the field data of its answer.
func (p *prometheusServer) get(path string, query url.Values, data any) error {
	resp, err := http.Get(p.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s", answer.Error)
	}
	return nil
}

// numbers evaluates an expression over the last ten seconds, or at one instant. It
// returns how many series have a number, which NaN is not.
func (p *prometheusServer) numbers(expr string, instant bool) (int, error) {
	now := time.Now()
	path, query := "query_range", url.Values{
		"query": {expr}, "step": {"1"},
		"start": {fmt.Sprint(now.Add(-10 * time.Second).Unix())}, "end": {fmt.Sprint(now.Unix())},
	}
	if instant {
		path, query = "query", url.Values{"query": {expr}}
	}
	var data struct {
		Result []struct {
			Value  [2]any
			Values [][2]any
		}
	}
	if err := p.get(path, query, &data); err != nil {
		return 0, err
	}
	found := 0
	for _, series := range data.Result {
		if slices.ContainsFunc(append(series.Values, series.Value), func(v [2]any) bool {
			n, err := strconv.ParseFloat(fmt.Sprint(v[1]), 64)
			return err == nil && !math.IsNaN(n)
		}) {
			found++
		}
	}
	return found, nil
}

// labels returns the values of a label of a metric.
func (p *prometheusServer) labels(label, metric string) []string {
	p.Helper()
	var values []string
	require.NoError(p, p.get("label/"+label+"/values", url.Values{"match[]": {metric}}, &values))
	return values
}

// firing returns the alerts that are firing, by job, as words in the order of the alphabet.
func (p *prometheusServer) firing() map[string]string {
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := p.get("alerts", nil, &data); err != nil {
		p.Error(err)
	}
	names := make(map[string][]string)
	for _, a := range data.Alerts {
		if a.State == "firing" {
			job := a.Labels["job"]
			names[job] = append(names[job], strings.TrimPrefix(a.Labels["alertname"], "Ratelimit"))
		}
	}
	firing := make(map[string]string)
	for job, names := range names {
		firing[job] = strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), " ")
	}
	return firing
}
