// Package promratelimit exports what rate limiters count to Prometheus.
package promratelimit
