// Package argocd tests that Argo CD finds the credentials that the operator writes and pulls with them: its own packages match a
// repository to a template and are its clients for charts and OCI artifacts.
package argocd

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/db"
	"github.com/argoproj/argo-cd/v3/util/helm"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/argo-cd/v3/util/oci"
	"github.com/argoproj/argo-cd/v3/util/settings"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"ecr-credential-operator/tests/consumers/stage"
)

const namespace = "argocd"

// argo is Argo CD's view of a cluster with Secrets that the operator has written.
type argo struct {
	db.ArgoDB
	client *fake.Clientset
}

func install(t *testing.T, secrets map[string]stage.Secret) argo {
	labels := map[string]string{"app.kubernetes.io/part-of": "argocd"}
	client := fake.NewClientset(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "argocd-cm", Labels: labels}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "argocd-secret", Labels: labels}},
	)
	for name, secret := range secrets {
		if _, err := client.CoreV1().Secrets(namespace).Create(t.Context(), object(name, secret), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	manager := settings.NewSettingsManager(t.Context(), client, namespace)
	return argo{db.NewDB(namespace, manager, client), client}
}

func object(name string, secret stage.Secret) *corev1.Secret {
	metadata := metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: secret.Labels}
	return &corev1.Secret{ObjectMeta: metadata, Type: corev1.SecretType(secret.Type), Data: secret.Bytes()}
}

// repository returns a repository as the repo-server gets it.
func (a argo) repository(t *testing.T, url string) *v1alpha1.Repository {
	repository, err := a.GetRepository(t.Context(), url, "default")
	if err != nil {
		t.Fatal(err)
	}
	// The registry of the test has a certificate that nobody trusts.
	repository.Insecure = true
	return repository
}

func (a argo) chart(t *testing.T, url string) error {
	repository := a.repository(t, url)
	_, closer, err := helm.NewClient(repository.Repo, repository.GetHelmCreds(), repository.EnableOCI, "", "").
		ExtractChart("app", "1.0.0", false, 1<<20, false)
	if err == nil {
		_ = closer.Close()
	}
	return err
}

func (a argo) artifact(t *testing.T, url string) error {
	repository := a.repository(t, url)
	client, err := oci.NewClient(repository.Repo, repository.GetOCICreds(), "", "", nil)
	if err != nil {
		return err
	}
	_, err = client.ResolveRevision(t.Context(), ">=1.0.0", true)
	return err
}

// withHelm puts the helm of the tests into the path, where Argo CD looks for it.
func withHelm(t *testing.T) {
	program, err := exec.Command("sh", "../../tools/get.sh", "helm-v3").Output()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.Symlink(strings.TrimSpace(string(program)), filepath.Join(folder, "helm")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder+":"+os.Getenv("PATH"))
}

func TestChartsAndArtifactsArePulledAcrossARefresh(t *testing.T) {
	withHelm(t)
	for _, kind := range []struct {
		format, scheme string
		pull           func(argo, *testing.T, string) error
	}{{"ArgoCDHelm", "", argo.chart}, {"ArgoCDOCI", "oci://", argo.artifact}} {
		t.Run(kind.format, func(t *testing.T) {
			short, long := stage.StartPair(t, true)
			secrets := map[string]stage.Secret{
				"short": stage.Write(t, kind.format, short.Host, "of-short"), "long": stage.Write(t, kind.format, long.Host, "of-long"),
			}
			cd := install(t, secrets)
			for name, at := range map[string]*stage.Registry{"short": short, "long": long} {
				at.PushChart(t, "charts/app", "1.0.0")
				at.Admit("of-" + name)
				url := kind.scheme + at.Host + "/charts"
				if kind.scheme != "" {
					url += "/app"
				}
				if err := kind.pull(cd, t, url); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if shown := at.Passwords(); !slices.Equal(shown, []string{"of-" + name}) {
					t.Fatalf("%s was shown %q", name, shown)
				}

				// Argo CD reads a refreshed token without a restart, and the one before is refused.
				at.Admit("refreshed")
				if err := kind.pull(cd, t, url); err == nil {
					t.Fatalf("%s: an expired token was admitted", name)
				}
				refreshed := object(name, stage.Write(t, kind.format, at.Host, "refreshed"))
				if _, err := cd.client.CoreV1().Secrets(namespace).Update(t.Context(), refreshed, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				// Its informer tells nobody when it has seen a Secret.
				deadline := time.Now().Add(time.Minute)
				for cd.repository(t, url).Password != "refreshed" {
					if time.Now().After(deadline) {
						t.Fatal("Argo CD has not seen the refreshed token")
					}
					time.Sleep(10 * time.Millisecond)
				}
				if err := kind.pull(cd, t, url); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		})
	}
}

func TestTheTemplateIsThatOfTheLongestPrefix(t *testing.T) {
	const host = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
	const longer = host + ".cn"
	cd := install(t, map[string]stage.Secret{
		"helm":        stage.Write(t, "ArgoCDHelm", host, "helm"),
		"helm-longer": stage.Write(t, "ArgoCDHelm", longer, "helm-longer"),
		"oci":         stage.Write(t, "ArgoCDOCI", host, "oci"),
		"oci-longer":  stage.Write(t, "ArgoCDOCI", longer, "oci-longer"),
		// What else the operator writes is no template.
		"pull-secret": stage.Write(t, "DockerConfigJson", host, "pull-secret"),
		"basic-auth":  stage.Write(t, "BasicAuth", host, "basic-auth"),
	})
	for url, password := range map[string]string{
		host:                              "helm",
		host + "/charts":                  "helm",
		strings.ToUpper(host) + "/charts": "helm",
		longer + "/charts":                "helm-longer",
		"oci://" + host + "/app":          "oci",
		"oci://" + longer + "/app":        "oci-longer",
		"444455556666.dkr.ecr.eu-west-1.amazonaws.com/charts": "",
		"https://" + host + "/charts":                         "",
		// The documentation warns of this one, and the template of OCI sources has a boundary.
		host + ".evil.example/charts":       "helm",
		"oci://" + host + ".evil.example/x": "",
	} {
		repository := cd.repository(t, url)
		if repository.Password != password {
			t.Errorf("%s has the password %q, not %q", url, repository.Password, password)
		}
		if isChart := strings.HasPrefix(password, "helm"); repository.EnableOCI != isChart {
			t.Errorf("%s: enableOCI is %v", url, repository.EnableOCI)
		}
	}
}

func TestTheHealthCheckOfTheDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../../docs/integrations/argo-cd.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "\n## Health check\n")
	_, block, _ := strings.Cut(rest, "```yaml\n")
	block, _, found := strings.Cut(block, "\n```")
	var config corev1.ConfigMap
	if err := yaml.Unmarshal([]byte(block), &config); err != nil || !found {
		t.Fatalf("there is no ConfigMap: %v", err)
	}
	overrides := lua.ResourceHealthOverrides{
		"pullsecrets.dev/EcrCredential": {HealthLua: config.Data["resource.customizations.health.pullsecrets.dev_EcrCredential"]},
	}
	condition := func(kind, status, reason string) any {
		return map[string]any{"type": kind, "status": status, "reason": reason, "message": "why"}
	}
	for _, example := range []struct {
		observed   int64
		conditions []any
		health     string
	}{
		{2, nil, "Progressing"},
		{1, []any{condition("Ready", "True", "Synced")}, "Progressing"},
		{2, []any{condition("Ready", "True", "Synced"), condition("Stalled", "False", "Synced")}, "Healthy"},
		{2, []any{condition("Ready", "False", "FetchingToken")}, "Progressing"},
		{2, []any{condition("Ready", "False", "NamespacesFailed")}, "Degraded"},
		{2, []any{condition("Ready", "False", "Suspended")}, "Suspended"},
		{2, []any{condition("Ready", "False", "InvalidSpec"), condition("Stalled", "True", "InvalidSpec")}, "Degraded"},
	} {
		object := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "metadata": map[string]any{"name": "x", "generation": int64(2)},
		}}
		if example.conditions != nil {
			object.Object["status"] = map[string]any{"observedGeneration": example.observed, "conditions": example.conditions}
		}
		health, err := overrides.GetResourceHealth(object)
		if err != nil || health == nil || string(health.Status) != example.health {
			t.Errorf("%v: %v, not %s (%v)", example.conditions, health, example.health, err)
		}
	}
}
