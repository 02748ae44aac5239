// Package consumers tests that Flux's source-controller pulls with the Secrets that the operator writes: its own packages read the
// Secret that `secretRef` names and pull, as its reconcilers call them.
package consumers

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/google/go-containerregistry/pkg/authn/kubernetes"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	helmgetter "helm.sh/helm/v4/pkg/getter"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ecr-credential-operator/tests/consumers/stage"

	"github.com/fluxcd/source-controller/internal/helm/getter"
	"github.com/fluxcd/source-controller/internal/helm/registry"
	"github.com/fluxcd/source-controller/internal/helm/repository"
)

// cluster is a cluster with one Secret.
type cluster struct {
	client.Client
	secret corev1.Secret
}

func (c *cluster) Get(_ context.Context, _ client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	c.secret.DeepCopyInto(into.(*corev1.Secret))
	return nil
}

// write puts a Secret there, as the operator writes it.
func (c *cluster) write(t *testing.T, format, host, password string) {
	c.put(stage.Write(t, format, host, password))
}

func (c *cluster) put(secret stage.Secret) {
	c.secret = corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "flux-system", Name: "ecr", Labels: secret.Labels},
		Type:       corev1.SecretType(secret.Type),
		Data:       secret.Bytes(),
	}
}

// helmChart fetches a chart of a HelmRepository of type oci, as the reconciler of HelmCharts does.
func (c *cluster) helmChart(t *testing.T, host string) ([]byte, error) {
	source := &sourcev1.HelmRepository{
		ObjectMeta: metav1.ObjectMeta{Namespace: "flux-system", Name: "charts"},
		Spec: sourcev1.HelmRepositorySpec{
			Type: sourcev1.HelmRepositoryTypeOCI, URL: "oci://" + host + "/charts", Insecure: true,
			SecretRef: &meta.LocalObjectReference{Name: "ecr"},
		},
	}
	options, err := getter.GetClientOpts(t.Context(), c, source, source.Spec.URL)
	if err != nil {
		return nil, err
	}
	registryClient, err := registry.NewClient(options.OCIAuth, options.TLSConfig, source.Spec.Insecure)
	if err != nil {
		return nil, err
	}
	providers := helmgetter.Providers{{Schemes: []string{"oci"}, New: helmgetter.NewOCIGetter}}
	charts, err := repository.NewOCIChartRepository(source.Spec.URL,
		repository.WithOCIGetter(providers),
		repository.WithOCIGetterOptions(append(options.GetterOpts, helmgetter.WithPlainHTTP(true), helmgetter.WithRegistryClient(registryClient))),
		repository.WithOCIRegistryClient(registryClient),
		repository.WithInsecureHTTP())
	if err != nil {
		return nil, err
	}
	// A range makes it list the tags as well.
	version, err := charts.GetChartVersion("app", ">=1.0.0")
	if err != nil {
		return nil, err
	}
	chart, err := charts.DownloadChart(version)
	if err != nil {
		return nil, err
	}
	return chart.Bytes(), nil
}

// ociRepository fetches the manifest of an OCIRepository. The reconciler makes a keychain of the Secret by this very call.
func (c *cluster) ociRepository(t *testing.T, host string) error {
	keychain, err := kubernetes.NewFromPullSecrets(t.Context(), []corev1.Secret{c.secret})
	if err != nil {
		return err
	}
	reference, err := name.ParseReference(host+"/charts/app:1.0.0", name.Insecure)
	if err != nil {
		return err
	}
	_, err = remote.Get(reference, remote.WithAuthFromKeychain(keychain))
	return err
}

func TestAChartIsFetchedAcrossARefresh(t *testing.T) {
	for _, format := range []string{"DockerConfigJson", "BasicAuth"} {
		t.Run(format, func(t *testing.T) {
			at := stage.Start(t, false)
			pushed := at.PushChart(t, "charts/app", "1.0.0")
			at.Admit("first")
			var cluster cluster
			cluster.write(t, format, at.Host, "first")
			chart, err := cluster.helmChart(t, at.Host)
			if err != nil || !bytes.Equal(chart, pushed) {
				t.Fatalf("%d bytes: %v", len(chart), err)
			}
			at.Admit("second")
			if _, err := cluster.helmChart(t, at.Host); err == nil {
				t.Fatal("an expired token was admitted")
			}
			cluster.write(t, format, at.Host, "second")
			if _, err := cluster.helmChart(t, at.Host); err != nil {
				t.Fatal(err)
			}
			if shown := at.Passwords(); !slices.Equal(shown, []string{"first", "second"}) {
				t.Fatalf("these were shown: %q", shown)
			}
		})
	}
}

func TestAnOCIRepositoryReadsThePullSecretAndIgnoresOtherTypes(t *testing.T) {
	at := stage.Start(t, false)
	at.PushChart(t, "charts/app", "1.0.0")
	at.Admit("first")
	var cluster cluster
	cluster.write(t, "DockerConfigJson", at.Host, "first")
	if err := cluster.ociRepository(t, at.Host); err != nil {
		t.Fatal(err)
	}
	at.Visits()
	for _, format := range []string{"BasicAuth", "DockerConfigFile"} {
		cluster.write(t, format, at.Host, "first")
		if err := cluster.ociRepository(t, at.Host); err == nil {
			t.Errorf("%s: it pulls", format)
		}
	}
	if shown := at.Passwords(); len(shown) > 0 {
		t.Errorf("these were shown: %q", shown)
	}
}

func TestTheEntryOfTheHostIsFoundAmongOthers(t *testing.T) {
	short, long := stage.StartPair(t, false)
	passwords := map[string]string{short.Host: "of-short", long.Host: "of-long", "https://index.docker.io/v1/": "of-hub"}
	for _, at := range []*stage.Registry{short, long} {
		at.PushChart(t, "charts/app", "1.0.0")
		at.Admit(passwords[at.Host])
	}
	pullSecret := func() stage.Secret {
		config := string(stage.DockerConfig(t, passwords))
		return stage.Secret{Type: "kubernetes.io/dockerconfigjson", Data: map[string]string{".dockerconfigjson": config}}
	}
	var cluster cluster
	cluster.put(pullSecret())
	for _, at := range []*stage.Registry{short, long} {
		if _, err := cluster.helmChart(t, at.Host); err != nil {
			t.Errorf("%s: %v", at.Host, err)
		}
		if err := cluster.ociRepository(t, at.Host); err != nil {
			t.Errorf("%s: %v", at.Host, err)
		}
		if shown := at.Passwords(); !slices.Equal(shown, []string{passwords[at.Host]}) {
			t.Errorf("%s was shown %q", at.Host, shown)
		}
	}
	// A token of a host that is only a prefix is not shown.
	delete(passwords, long.Host)
	cluster.put(pullSecret())
	if _, err := cluster.helmChart(t, long.Host); err == nil {
		t.Error("a chart was fetched without an entry")
	}
	if err := cluster.ociRepository(t, long.Host); err == nil {
		t.Error("a manifest was fetched without an entry")
	}
	if shown := long.Passwords(); len(shown) > 0 {
		t.Errorf("these were shown: %q", shown)
	}
}
