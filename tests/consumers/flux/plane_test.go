package consumers

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a process may take for anything, on a machine that is busy with other tests.
const patience = 2 * time.Minute

// tool returns the path of a program that tests/tools/get.sh builds once.
func tool(t *testing.T, name string) string {
	t.Helper()
	command := exec.Command("sh", filepath.Join("..", "..", "tools", "get.sh"), name)
	command.Stderr = os.Stderr
	path, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return strings.TrimSpace(string(path))
}

// run starts a program that ends with the test, and shows the end of its log where the test fails.
func run(t *testing.T, program string, environment []string, args ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, args...)
	command.Env = append(os.Environ(), environment...)
	command.Stdout, command.Stderr = log, log
	// Whatever ends the test ends the program.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(path); err == nil && t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(program), text[max(0, len(text)-4000):])
		}
	})
}

// addresses returns free addresses of this machine, all of them different.
func addresses(t *testing.T, count int) []string {
	t.Helper()
	var free []string
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		// A port that is given back at once may be the next one.
		defer listener.Close()
		free = append(free, listener.Addr().String())
	}
	return free
}

// startAPIServer starts etcd and an API server, and returns the path of its administrator's kubeconfig.
func startAPIServer(t *testing.T) string {
	t.Helper()
	folder, token := t.TempDir(), rand.Text()
	file := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	keyFile := file("sa.key", string(pem.EncodeToMemory(block)))

	start := func(name string, args ...string) {
		if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" {
			run(t, filepath.Join(assets, name), nil, args...)
			return
		}
		run(t, tool(t, "controlplane"), nil, append([]string{name}, args...)...)
	}
	free := addresses(t, 3)
	client, peer, host := "http://"+free[0], "http://"+free[1], free[2]
	start("etcd", "--data-dir="+filepath.Join(folder, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + host
	start("kube-apiserver", "--etcd-servers="+client, "--bind-address=127.0.0.1", "--secure-port="+port,
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--authorization-mode=RBAC",
		"--cert-dir="+filepath.Join(folder, "certs"),
		"--token-auth-file="+file("tokens.csv", token+",admin,admin,system:masters\n"),
		"--service-account-issuer="+url, "--service-account-signing-key-file="+keyFile, "--service-account-key-file="+keyFile)
	waitUntilReady(t, url+"/readyz", token)
	return file("kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, url, token))
}

// waitUntilReady asks again and again: a server that starts tells nobody when it is ready.
func waitUntilReady(t *testing.T, url, token string) {
	t.Helper()
	// The API server has made its certificate itself.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: patience}
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("status %d", response.StatusCode)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", url, err)
		}
	}
}
