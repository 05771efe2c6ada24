package chain

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

const monitoring = root + "/compose/monitoring"

// withPrometheus skips a test that needs its programs.
func withPrometheus(t *testing.T) {
	t.Helper()
	if os.Getenv("TRICYCLE_TEST_PROMETHEUS") == "" {
		t.Skip("TRICYCLE_TEST_PROMETHEUS: must be 1, with prometheus and promtool installed")
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	return servicetest.Text(t, filepath.Join(monitoring, file))
}

// alerts are the names of the alerts.
func alerts(t *testing.T) (names []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(read(t, "alerts.yaml"), -1) {
		names = append(names, m[1])
	}
	if len(names) == 0 {
		t.Fatal("alerts.yaml has no alert")
	}
	return names
}

// panel is what the tests need of a panel of the dashboard.
type panel struct {
	Title   string
	Targets []struct{ Expr string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	var dashboard struct{ Panels []panel }
	servicetest.NoError(t, json.Unmarshal([]byte(read(t, "grafana/tricycle.json")), &dashboard))
	if len(dashboard.Panels) == 0 {
		t.Fatal("the dashboard has no panel")
	}
	return dashboard.Panels
}

// Every metric in a panel or an alert is one that the reference describes.
func TestMonitoredMetrics(t *testing.T) {
	reference := servicetest.Text(t, root+"/docs/reference/metrics.md")
	texts := []string{read(t, "alerts.yaml")}
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			texts = append(texts, target.Expr)
		}
	}
	for _, name := range regexp.MustCompile(`tricycle_\w+`).FindAllString(strings.Join(texts, "\n"), -1) {
		if name = strings.TrimSuffix(name, "_bucket"); !strings.Contains(reference, "`"+name+"`") {
			t.Errorf("docs/reference/metrics.md has no metric %s", name)
		}
	}
}

func TestAlertRules(t *testing.T) {
	withPrometheus(t)
	for _, args := range [][]string{{"check", "config", "prometheus.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name     string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	servicetest.NoError(t, yaml.Unmarshal([]byte(read(t, "alerts_test.yaml")), &tests))
	fires, clear := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Expected) > 0
			clear[a.Name] = clear[a.Name] || len(a.Expected) == 0
		}
	}
	for _, name := range alerts(t) {
		if !fires[name] || !clear[name] {
			t.Errorf("alerts_test.yaml: %s fires: %v, does not fire: %v, want a test of both", name, fires[name], clear[name])
		}
	}
}

// prometheus is a running Prometheus with the shipped rules.
type prometheus struct {
	t   *testing.T
	url string
}

// newPrometheus starts it for the chain. Scrapes and the windows of the rules
// are short, because a test does not wait five minutes for an alert to clear.
func newPrometheus(c *chain) *prometheus {
	c.t.Helper()
	var config settings
	servicetest.NoError(c.t, yaml.Unmarshal([]byte(read(c.t, "prometheus.yaml")), &config))
	config["global"] = settings{"scrape_interval": "1s", "evaluation_interval": "1s"}
	for _, job := range config["scrape_configs"].([]any) {
		j := job.(settings)
		delete(j, "dns_sd_configs")
		j["static_configs"] = []settings{{"targets": []string{c.address[j["job_name"].(string)]}}}
	}
	file, err := yaml.Marshal(config)
	servicetest.NoError(c.t, err)
	directory := c.t.TempDir()
	servicetest.File(c.t, filepath.Join(directory, "prometheus.yaml"), string(file))
	servicetest.File(c.t, filepath.Join(directory, "alerts.yaml"),
		strings.NewReplacer("[5m]", "[10s]", "[1m]", "[5s]", "for: 30s", "for: 1s", "for: 1m", "for: 1s").Replace(read(c.t, "alerts.yaml")))
	address := servertest.FreeAddress(c.t)
	servicetest.Launch(c.t, exec.Command("prometheus", "--config.file="+filepath.Join(directory, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(directory, "data"), "--web.listen-address="+address, "--enable-feature=exemplar-storage"))
	p := &prometheus{t: c.t, url: "http://" + address}
	servicetest.Eventually(c.t, time.Minute, "Prometheus is ready", func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// api calls the HTTP API and decodes the data of the answer.
func (p *prometheus) api(path string, query url.Values, data any) {
	p.t.Helper()
	resp, err := http.Get(p.url + "/api/v1/" + path + "?" + query.Encode())
	servicetest.NoError(p.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	servicetest.NoError(p.t, err)
	answer := struct {
		Status string
		Data   any
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("%s %v: %v in %s", path, query, err, body)
	}
}

// firing are the names of the alerts that fire.
func (p *prometheus) firing() (names []string) {
	p.t.Helper()
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	p.api("alerts", nil, &data)
	for _, a := range data.Alerts {
		if a.State == "firing" && !slices.Contains(names, a.Labels["alertname"]) {
			names = append(names, a.Labels["alertname"])
		}
	}
	slices.Sort(names)
	return names
}

// samples counts the numbers that a query returns over a time.
func (p *prometheus) samples(query string, from time.Time) (n int) {
	p.t.Helper()
	var data struct {
		Result []struct{ Values [][2]any }
	}
	p.api("query_range", url.Values{
		"query": {query}, "step": {"1"},
		"start": {fmt.Sprint(from.Unix())}, "end": {fmt.Sprint(time.Now().Unix())},
	}, &data)
	for _, series := range data.Result {
		for _, v := range series.Values {
			if f, err := strconv.ParseFloat(v[1].(string), 64); err == nil && !math.IsNaN(f) {
				n++
			}
		}
	}
	return n
}

// A session loses messages, meets a malformed record and misses services and
// spans. The alerts fire and clear, every panel shows something, and the
// exemplars lead to traces of stored messages.
func TestMonitoring(t *testing.T) {
	slow(t)
	withPrometheus(t)
	var broken atomic.Bool
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(collector.Close)
	c := newChain(t)
	for _, o := range c.overlays {
		o["tracing"] = settings{"endpoint": collector.URL}
	}
	c.overlays["ms1"]["interaction"] = settings{"resend_after_seconds": 1, "give_up_after_seconds": 2}
	c.up()
	began := time.Now()
	p := newPrometheus(c)
	c.load(600, 16)
	servicetest.Eventually(t, 30*time.Second, "no alert fires", func() bool { return len(p.firing()) == 0 && p.samples("up", began) >= 9 })

	broken.Store(true)
	w := kafka.Writer{Addr: kafka.TCP(c.kafka.Brokers...), Topic: c.kafka.Topic, BatchTimeout: 10 * time.Millisecond, Transport: &kafka.Transport{}}
	defer w.Close()
	servicetest.NoError(t, w.WriteMessages(t.Context(), kafka.Message{Value: []byte("no message")}))
	servicetest.Eventually(t, 30*time.Second, "the dead letter and the dropped spans are alerts", func() bool {
		return slices.Equal(p.firing(), []string{"DeadLetters", "SpansDropped"})
	})
	for _, name := range []string{"ms2", "ms3"} {
		c.running[name].Signal(syscall.SIGTERM)
	}
	want := []string{"DependencyNotReady", "MessagesLost", "NoProgress", "ServiceDown"}
	servicetest.Eventually(t, time.Minute, fmt.Sprint(want, " fire"), func() bool {
		firing := p.firing()
		return !slices.ContainsFunc(want, func(name string) bool { return !slices.Contains(firing, name) })
	})

	broken.Store(false)
	c.start("ms2")
	c.start("ms3")
	servicetest.Eventually(t, time.Minute, "no alert fires", func() bool { return len(p.firing()) == 0 })
	for _, panel := range panels(t) {
		for _, target := range panel.Targets {
			if p.samples(strings.ReplaceAll(target.Expr, "$__rate_interval", "4s"), began) == 0 {
				t.Errorf("panel %s: %s returns nothing", panel.Title, target.Expr)
			}
		}
	}
	var s session
	c.get("/stop", http.StatusOK, &s)
	c.check(s)
	c.exemplars(p, began)
}

// exemplars looks up the trace ids of the exemplars among the rows.
func (c *chain) exemplars(p *prometheus, from time.Time) {
	c.t.Helper()
	var data []struct {
		Exemplars []struct{ Labels map[string]string }
	}
	p.api("query_exemplars", url.Values{
		"query": {"tricycle_hop_seconds_bucket"},
		"start": {fmt.Sprint(from.Unix())}, "end": {fmt.Sprint(time.Now().Unix())},
	}, &data)
	found := 0
	for _, series := range data {
		for _, e := range series.Exemplars {
			rows := c.number(`SELECT COUNT(*) FROM messages WHERE LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/',
				DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 32) = ?`, e.Labels["trace_id"])
			if rows != 1 {
				c.t.Errorf("exemplar %v is the trace of %d rows, want 1", e.Labels, rows)
			}
			found++
		}
	}
	if found == 0 {
		c.t.Error("Prometheus has no exemplars of the hops")
	}
}
