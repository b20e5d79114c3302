package server

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth/sandbox"
)

// metrics are what /metrics shows. Labels hold names of ours only, never what
// a client made up.
type metrics struct {
	registry *prometheus.Registry
	handler  http.Handler
	calls    *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	refused  *prometheus.CounterVec
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "berth_tool_calls_total", Help: "Tool calls answered, by tool and outcome (ok, error, cancelled, disconnected)."}, []string{"tool", "outcome"}),
		latency:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "berth_tool_call_seconds", Help: "Time to answer a tool call.", Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10, 30, 60}}, []string{"tool"}),
		refused:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "berth_http_refused_total", Help: "HTTP requests refused before they reached MCP, by reason."}, []string{"reason"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_build_info", Help: "Always 1; the labels say what runs.", ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()}})
	build.Set(1)
	m.registry.MustRegister(m.calls, m.latency, m.refused, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
	return m
}

// observe adds what is read from the server itself.
func (m *metrics) observe(s *Server) {
	gauge := func(transport string, read func() int) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_protocol_sessions", Help: "Protocol sessions with state here.", ConstLabels: prometheus.Labels{"transport": transport}}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(read())
		}))
	}
	gauge("http", func() int { return len(s.sessions) })
	gauge("sse", func() int { return len(s.sse) })
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_event_streams", Help: "Open event streams."}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(s.streams)
	}))
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_requests_running", Help: "MCP requests being worked on."}, func() float64 {
		s.calls.mu.Lock()
		defer s.calls.mu.Unlock()
		return float64(s.calls.n)
	}))
}

// tool is the middleware that counts and times.
func (m *metrics) tool(next mcpserver.ToolHandlerFunc) mcpserver.ToolHandlerFunc {
	return func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		start := time.Now()
		result, err := next(ctx, r)
		outcome := "ok"
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, sandbox.ErrCancelled):
			outcome = "cancelled"
		case cause != nil:
			outcome = "disconnected"
		case err != nil || result == nil || result.IsError:
			outcome = "error"
		}
		m.calls.WithLabelValues(r.Params.Name, outcome).Inc()
		m.latency.WithLabelValues(r.Params.Name).Observe(time.Since(start).Seconds())
		return result, err
	}
}

// httpLogger gives net/http's own complaints to the structured log.
func httpLogger(l *slog.Logger) *log.Logger {
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}
