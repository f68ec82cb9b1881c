// Command render prints what `helm template --include-crds` would print of a chart, by Helm's own loader and engine. The whole of Helm
// is ten times as much to build, and reaches for clusters and registries that a test has none of.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

const usage = "usage: render CHART NAMESPACE [VALUES.yaml]"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return fmt.Errorf("%s", usage)
	}
	chart, err := loader.Load(args[0])
	if err != nil {
		return err
	}
	given := chartutil.Values{}
	if len(args) == 3 {
		if given, err = chartutil.ReadValuesFile(args[2]); err != nil {
			return err
		}
	}
	release := chartutil.ReleaseOptions{Name: "meshwright", Namespace: args[1], Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(chart, given, release, chartutil.DefaultCapabilities)
	if err != nil {
		return err
	}
	rendered, err := engine.Render(chart, values)
	if err != nil {
		return err
	}
	for _, crd := range chart.CRDObjects() {
		rendered[crd.Filename] = string(crd.File.Data)
	}
	names := make([]string, 0, len(rendered))
	for name := range rendered {
		if !strings.HasSuffix(name, "NOTES.txt") && strings.TrimSpace(rendered[name]) != "" {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Printf("---\n%s\n", rendered[name])
	}
	return nil
}
