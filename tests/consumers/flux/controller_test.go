package consumers

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"ecr-credential-operator/tests/consumers/stage"
)

const fluxSystem = "flux-system"

// flux is a source-controller and the API server that it works on.
type flux struct {
	client.WithWatch
}

// startController starts source-controller itself on an API server with its CustomResourceDefinitions.
func startController(t *testing.T) flux {
	t.Helper()
	kubeconfig := startAPIServer(t)
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.WarningHandler = nil
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, sourcev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	api, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	flux := flux{api}
	flux.installDefinitions(t)
	flux.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fluxSystem}})
	free := addresses(t, 2)
	storage, health := free[0], free[1]
	run(t, tool(t, "source-controller"), []string{"KUBECONFIG=" + kubeconfig, "RUNTIME_NAMESPACE=" + fluxSystem},
		"--storage-path="+t.TempDir(), "--storage-addr="+storage, "--storage-adv-addr="+storage,
		"--health-addr="+health, "--metrics-addr=0", "--interval-jitter-percentage=0")
	waitUntilReady(t, "http://"+health+"/readyz", "")
	return flux
}

// installDefinitions installs the CustomResourceDefinitions of source-controller's module and waits until they are served.
func (f flux) installDefinitions(t *testing.T) {
	t.Helper()
	folder, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/fluxcd/source-controller").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(folder)), "config", "crd", "bases", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d definitions: %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		definition := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &definition.Object); err != nil {
			t.Fatal(err)
		}
		f.create(t, definition)
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(definition.GroupVersionKind())
		f.await(t, list, definition.GetName(), "is established", func(object client.Object) bool {
			conditions, _, _ := unstructured.NestedSlice(object.(*unstructured.Unstructured).Object, "status", "conditions")
			return slices.ContainsFunc(conditions, func(condition any) bool {
				fields, _ := condition.(map[string]any)
				return fields["type"] == "Established" && fields["status"] == "True"
			})
		})
	}
}

func (f flux) create(t *testing.T, object client.Object) {
	t.Helper()
	if err := f.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// await watches one object until something holds of it.
func (f flux) await(t *testing.T, list client.ObjectList, name, what string, holds func(client.Object) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Without a version the watch begins with the object as it is.
	watch, err := f.Watch(ctx, list, client.MatchingFields{"metadata.name": name})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	var last client.Object
	for event := range watch.ResultChan() {
		object, ok := event.Object.(client.Object)
		if !ok {
			t.Fatalf("%s: %v", name, event.Object)
		}
		if last = object; holds(object) {
			return
		}
	}
	text, _ := yaml.Marshal(last)
	t.Fatalf("it is never true that %s %s:\n%s", name, what, text)
}

// write puts the Secret there as the operator writes it: created once, then changed in place.
func (f flux) write(t *testing.T, host, password string) {
	t.Helper()
	written := stage.Write(t, "DockerConfigJson", host, password)
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: fluxSystem, Name: "ecr-pull-secret"},
		Type:       corev1.SecretType(written.Type),
		Data:       written.Bytes(),
	}
	err := f.Create(t.Context(), secret)
	if client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	if err != nil {
		if err := f.Update(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
}

// ask requests a reconciliation now, as `flux reconcile` does.
func (f flux) ask(t *testing.T, objects []client.Object, when string) {
	t.Helper()
	for _, object := range objects {
		patch := client.RawPatch("application/merge-patch+json",
			[]byte(`{"metadata":{"annotations":{"`+meta.ReconcileRequestAnnotation+`":"`+when+`"}}}`))
		if err := f.Patch(t.Context(), object, patch); err != nil {
			t.Fatal(err)
		}
	}
}

// source is what the tests read of a HelmChart and of an OCIRepository.
type source interface {
	client.Object
	GetConditions() []metav1.Condition
	GetArtifact() *meta.Artifact
}

// fetched waits until a source has the artifact of a version, and returns its content.
func (f flux) fetched(t *testing.T, list client.ObjectList, name, version string) []byte {
	t.Helper()
	var url string
	f.await(t, list, name, "has "+version, func(object client.Object) bool {
		artifact := object.(source).GetArtifact()
		if artifact == nil || !strings.HasPrefix(artifact.Revision, version) {
			return false
		}
		url = artifact.URL
		return apimeta.IsStatusConditionTrue(object.(source).GetConditions(), meta.ReadyCondition)
	})
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %v", url, response.StatusCode, err)
	}
	return content
}

func TestTheControllerFetchesAChartBySecretRefAcrossARefresh(t *testing.T) {
	at := stage.Start(t, false)
	first := at.PushChart(t, "charts/app", "1.0.0")
	at.Admit("first")
	flux := startController(t)
	flux.write(t, at.Host, "first")

	place := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: fluxSystem, Name: name} }
	secret, rarely := &meta.LocalObjectReference{Name: "ecr-pull-secret"}, metav1.Duration{Duration: patience * 30}
	repository := &sourcev1.HelmRepository{ObjectMeta: place("charts"), Spec: sourcev1.HelmRepositorySpec{
		Type: sourcev1.HelmRepositoryTypeOCI, URL: "oci://" + at.Host + "/charts", Insecure: true,
		SecretRef: secret, Interval: rarely,
	}}
	chart := &sourcev1.HelmChart{ObjectMeta: place("app"), Spec: sourcev1.HelmChartSpec{
		Chart: "app", Version: ">=1.0.0", Interval: rarely,
		SourceRef: sourcev1.LocalHelmChartSourceReference{Kind: sourcev1.HelmRepositoryKind, Name: repository.Name},
	}}
	artifact := &sourcev1.OCIRepository{ObjectMeta: place("app"), Spec: sourcev1.OCIRepositorySpec{
		URL: "oci://" + at.Host + "/charts/app", Insecure: true, SecretRef: secret, Interval: rarely,
		Reference: &sourcev1.OCIRepositoryRef{SemVer: ">=1.0.0"},
	}}
	for _, object := range []client.Object{repository, chart, artifact} {
		flux.create(t, object)
	}
	if fetched := flux.fetched(t, &sourcev1.HelmChartList{}, "app", "1.0.0"); !bytes.Equal(fetched, first) {
		t.Fatalf("the chart has %d bytes", len(fetched))
	}
	flux.fetched(t, &sourcev1.OCIRepositoryList{}, "app", "1.0.0")

	// The token expires before the Secret is refreshed: nothing new can be fetched.
	second := at.PushChart(t, "charts/app", "1.1.0")
	at.Admit("second")
	sources := []client.Object{chart, artifact}
	flux.ask(t, sources, "1")
	fails := func(object client.Object) bool {
		return apimeta.IsStatusConditionFalse(object.(source).GetConditions(), meta.ReadyCondition)
	}
	flux.await(t, &sourcev1.HelmChartList{}, "app", "fails", fails)
	flux.await(t, &sourcev1.OCIRepositoryList{}, "app", "fails", fails)

	flux.write(t, at.Host, "second")
	flux.ask(t, sources, "2")
	if fetched := flux.fetched(t, &sourcev1.HelmChartList{}, "app", "1.1.0"); !bytes.Equal(fetched, second) {
		t.Fatalf("the chart has %d bytes", len(fetched))
	}
	flux.fetched(t, &sourcev1.OCIRepositoryList{}, "app", "1.1.0")
	if shown := at.Passwords(); !slices.Equal(shown, []string{"first", "second"}) {
		t.Fatalf("these were shown: %q", shown)
	}
}
