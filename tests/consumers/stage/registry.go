// Package stage has what the tests of all consumers share: a registry that admits one token, and Secrets as the operator writes them.
package stage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Username is the user name of every ECR token.
const Username = "AWS"

// Registry is an OCI registry that admits one token at a time, and says no as ECR does.
type Registry struct {
	// Host is its address and port.
	Host string

	mutex    sync.Mutex
	password string
	expired  map[string]bool
	blobs    map[string][]byte
	tags     map[string]map[string]string
	upload   []byte
	visits   []Visit
}

// Visit is a request that showed credentials, or none.
type Visit struct {
	Username, Password string
	Status             int
}

// Start starts a registry on a free port, with HTTPS or without.
func Start(t testing.TB, secure bool) *Registry {
	return serve(t, listen(t), secure)
}

// StartPair starts two registries. The host of the first is a prefix of that of the second.
func StartPair(t testing.TB, secure bool) (*Registry, *Registry) {
	for range 200 {
		// A free port has five digits, as a rule. Its first four are another, which may be free as well.
		long := listen(t)
		short, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", long.Addr().(*net.TCPAddr).Port/10))
		if err != nil {
			long.Close()
			continue
		}
		return serve(t, short, secure), serve(t, long, secure)
	}
	t.Fatal("no two free ports, one of which is a prefix of the other")
	return nil, nil
}

func listen(t testing.TB) net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func serve(t testing.TB, listener net.Listener, secure bool) *Registry {
	registry := &Registry{
		// Argo CD reads a host without a scheme as a URL, in which an address with a port is none.
		Host:    fmt.Sprintf("localhost:%d", listener.Addr().(*net.TCPAddr).Port),
		expired: map[string]bool{},
		blobs:   map[string][]byte{},
		tags:    map[string]map[string]string{},
	}
	server := httptest.NewUnstartedServer(registry)
	server.Listener.Close()
	server.Listener = listener
	if secure {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return registry
}

// Admit admits this token from now on. The one before has expired.
func (r *Registry) Admit(password string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.expired[r.password] = true
	r.password = password
}

// Visits returns all requests since the last call, oldest first.
func (r *Registry) Visits() []Visit {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	visits := r.visits
	r.visits = nil
	return visits
}

// Passwords returns the passwords that were shown since the last call, each once.
func (r *Registry) Passwords() []string {
	var passwords []string
	seen := map[string]bool{}
	for _, visit := range r.Visits() {
		if visit.Password != "" && !seen[visit.Password] {
			seen[visit.Password] = true
			passwords = append(passwords, visit.Password)
		}
	}
	return passwords
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	chartConfig  = "application/vnd.cncf.helm.config.v1+json"
	chartLayer   = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
)

// PushChart stores a helm chart under a repository, with its version as the tag, and returns the chart's bytes.
func (r *Registry) PushChart(t testing.TB, repository, version string) []byte {
	name := repository[strings.LastIndex(repository, "/")+1:]
	about := fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\n", name, version)
	var chart bytes.Buffer
	zip := gzip.NewWriter(&chart)
	archive := tar.NewWriter(zip)
	header := &tar.Header{Name: name + "/Chart.yaml", Mode: 0o644, Size: int64(len(about))}
	if err := archive.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	for _, close := range []func() error{
		func() error { _, err := archive.Write([]byte(about)); return err }, archive.Close, zip.Close,
	} {
		if err := close(); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Appendf(nil, `{"name":%q,"version":%q,"apiVersion":"v2"}`, name, version)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": r.descriptor(chartConfig, config),
		"layers": []any{r.descriptor(chartLayer, chart.Bytes())},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.tag(repository, version, manifest)
	return chart.Bytes()
}

func (r *Registry) descriptor(mediaType string, data []byte) map[string]any {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	digest := digestOf(data)
	r.blobs[digest] = data
	return map[string]any{"mediaType": mediaType, "digest": digest, "size": len(data)}
}

func digestOf(data []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(data))
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	username, password, shown := request.BasicAuth()
	status := http.StatusOK
	switch {
	case shown && username == Username && password != "" && password == r.password:
		status = r.answer(w, request)
	case shown && r.expired[password]:
		status = http.StatusForbidden
		refuse(w, status, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")
	default:
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="https://ecr.amazonaws.com/",service="ecr.amazonaws.com"`)
		refuse(w, status, "UNAUTHORIZED", "Not Authorized")
	}
	r.visits = append(r.visits, Visit{Username: username, Password: password, Status: status})
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

// answer serves whoever is admitted.
func (r *Registry) answer(w http.ResponseWriter, request *http.Request) int {
	path := strings.TrimPrefix(request.URL.Path, "/v2/")
	if path == "" {
		return http.StatusOK
	}
	if repository, ok := strings.CutSuffix(path, "/tags/list"); ok {
		var tags []string
		for tag := range r.tags[repository] {
			tags = append(tags, tag)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"name": repository, "tags": tags})
		return http.StatusOK
	}
	repository, reference, ofManifest := strings.Cut(path, "/manifests/")
	switch request.Method {
	case http.MethodPost, http.MethodPatch, http.MethodPut:
		return r.store(w, request, repository, reference, ofManifest)
	}
	digest, mediaType := path[strings.LastIndex(path, "/")+1:], "application/octet-stream"
	if ofManifest {
		mediaType = manifestType
		if tagged := r.tags[repository][reference]; tagged != "" {
			digest = tagged
		}
	}
	data, ok := r.blobs[digest]
	if !ok {
		refuse(w, http.StatusNotFound, "NOT_FOUND", "not found")
		return http.StatusNotFound
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if request.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
	return http.StatusOK
}

// store takes a manifest, or a blob in one piece or two.
func (r *Registry) store(w http.ResponseWriter, request *http.Request, repository, tag string, ofManifest bool) int {
	data, err := io.ReadAll(request.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", err.Error())
		return http.StatusBadRequest
	}
	status := http.StatusCreated
	switch digest := request.URL.Query().Get("digest"); {
	case ofManifest:
		r.tag(repository, tag, data)
	case digest == "":
		// The upload goes on where it has begun.
		w.Header().Set("Location", strings.TrimSuffix(request.URL.Path, "/"))
		r.upload, status = append(r.upload, data...), http.StatusAccepted
	default:
		r.blobs[digest], r.upload = append(r.upload, data...), nil
	}
	w.WriteHeader(status)
	return status
}

// tag stores a manifest under a tag.
func (r *Registry) tag(repository, tag string, manifest []byte) {
	digest := digestOf(manifest)
	r.blobs[digest] = manifest
	if r.tags[repository] == nil {
		r.tags[repository] = map[string]string{}
	}
	r.tags[repository][tag] = digest
}
