// Runs h2spec's cases for servers and prints one line of JSON for each: where it stands, what it does, what came of it.
//
//	h2spec ADDRESS PORT PATH plain|tls
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// How long a case waits for what it expects.
const patience = 3 * time.Second

// One case and what came of it.
type line struct {
	Case     string   `json:"case"`
	Does     string   `json:"does"`
	Verdict  string   `json:"verdict"`
	Rule     string   `json:"rule,omitempty"`
	Expected []string `json:"expected,omitempty"`
	Actual   string   `json:"actual,omitempty"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: h2spec ADDRESS PORT PATH plain|tls")
	}
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	settings := &config.Config{
		Host: args[0], Port: port, Path: args[2], Timeout: patience,
		MaxHeaderLen: 4000, Strict: true, TLS: args[3] == "tls", Insecure: true,
	}
	// What the suite itself says goes beside the lines.
	lines := json.NewEncoder(os.Stdout)
	os.Stdout = os.Stderr
	for _, suite := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		suite.Test(settings)
		if err := report(lines, suite); err != nil {
			return err
		}
	}
	return nil
}

func report(lines *json.Encoder, group *spec.TestGroup) error {
	for _, test := range append(append([]*spec.TestCase{}, group.Tests...), group.StrictTests...) {
		if test.Result == nil {
			return fmt.Errorf("%s: %q did not run", group.ID(), test.Desc)
		}
		if err := lines.Encode(told(group, test)); err != nil {
			return err
		}
	}
	for _, inner := range group.Groups {
		if err := report(lines, inner); err != nil {
			return err
		}
	}
	return nil
}

func told(group *spec.TestGroup, test *spec.TestCase) line {
	one := line{Case: fmt.Sprintf("%s/%d", group.ID(), test.Result.Sequence), Does: test.Desc, Verdict: "passed"}
	switch {
	case test.Result.Skipped:
		one.Verdict = "skipped"
	case test.Result.Failed:
		one.Verdict, one.Rule, one.Actual = "failed", test.Requirement, test.Result.Error.Error()
		var wrong *spec.TestError
		if errors.As(test.Result.Error, &wrong) {
			one.Expected, one.Actual = wrong.Expected, wrong.Actual
		}
	}
	return one
}
