package main

import (
	_ "embed"
	"html/template"
	"net/http"
	"strings"
	"time"
)

// standing is the state of a caller under one limit.
type standing struct {
	Limit        string `json:"limit"`
	Rule         string `json:"rule"`
	Left         int64  `json:"left"`
	Of           int64  `json:"of"`
	WholeSeconds int64  `json:"whole_in_seconds"` // if nothing more is used
}

// showLimits shows a caller what is left under each limit. Its route costs nothing, so that
// a caller who has nothing left gets an answer, too.
func (a *api) showLimits(w http.ResponseWriter, r *http.Request) {
	plan := a.plan(r)
	standings, err := a.look(r)
	if err != nil {
		http.Error(w, "the limits cannot be shown just now", http.StatusServiceUnavailable)
		return
	}
	page := struct {
		Plan   string     `json:"plan"`
		Limits []standing `json:"limits"`
	}{plan.name, standings}

	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept, X-API-Key")
	if strings.Contains(r.Header.Get("Accept"), "text/html") { // a browser
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		limitsPage.Execute(w, page) // fails only if the client's connection does
		return
	}
	reply(w, http.StatusOK, page)
}

func (a *api) look(r *http.Request) ([]standing, error) {
	found, err := a.limiter.Look(r)
	if err != nil {
		return nil, err
	}
	standings := make([]standing, len(found))
	for i, f := range found {
		standings[i] = standing{
			Limit:        f.Name,
			Rule:         f.Limit.Named("").String(),
			Left:         f.Remaining,
			Of:           f.Limit.Burst(),
			WholeSeconds: int64((f.ResetAfter + time.Second - 1) / time.Second),
		}
	}
	return standings, nil
}

//go:embed limits.html
var limitsHTML string

var limitsPage = template.Must(template.New("limits").Parse(limitsHTML))
