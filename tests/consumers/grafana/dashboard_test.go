// Package consumers tests that Grafana's own types know every field of the dashboard and of its panels and queries.
package consumers

import (
	"os"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// findings returns what is wrong with a dashboard: unknown fields, missing fields, and values that are not allowed.
func findings(text []byte) string {
	var board dashboard.Dashboard
	// An error without a text is an empty list of errors.
	if err := board.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err.Error()
	}
	if err := board.Validate(); err != nil && err.Error() != "" {
		return err.Error()
	}
	return ""
}

func TestGrafanaKnowsEachFieldOfTheDashboard(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	text, err := os.ReadFile("../../../charts/ecr-credential-operator/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if found := findings(text); found != "" {
		t.Fatal(found)
	}
	for what, change := range map[string][2]string{
		"a field of a panel": {`"gridPos"`, `"gridPosition"`},
		"a field of a query": {`"legendFormat"`, `"legend"`},
		"an option":          {`"reduceOptions"`, `"reduce"`},
		"a variable":         {`"includeAll"`, `"all"`},
	} {
		if changed := strings.Replace(string(text), change[0], change[1], 1); changed == string(text) || findings([]byte(changed)) == "" {
			t.Errorf("%s that Grafana does not know is not found", what)
		}
	}
}
