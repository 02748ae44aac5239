package stage

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Secret is what a consumer reads of a Secret.
type Secret struct {
	Type                string
	Labels, Annotations map[string]string
	Data                map[string]string
}

// Bytes returns the data as a Secret of the API holds it.
func (s Secret) Bytes() map[string][]byte {
	data := map[string][]byte{}
	for key, value := range s.Data {
		data[key] = []byte(value)
	}
	return data
}

// Write returns a Secret of a format for one host, as the operator writes it. tests/consumers/secrets.json has all formats.
func Write(t testing.TB, format, host, password string) Secret {
	text, err := os.ReadFile(filepath.Join("..", "secrets.json"))
	if err != nil {
		t.Fatal(err)
	}
	formats := map[string]Secret{}
	if err := json.Unmarshal(text, &formats); err != nil {
		t.Fatal(err)
	}
	secret, ok := formats[format]
	if !ok {
		t.Fatalf("there is no format %s", format)
	}
	values := strings.NewReplacer("HOST", host, "PASSWORD", password, "AUTH", Auth(password), "REGEX", regexp.QuoteMeta(host))
	for _, pairs := range []map[string]string{secret.Annotations, secret.Data} {
		for key, value := range pairs {
			pairs[key] = values.Replace(value)
		}
	}
	return secret
}

// Auth returns the entry of a docker config for a token.
func Auth(password string) string {
	return base64.StdEncoding.EncodeToString([]byte(Username + ":" + password))
}

// DockerConfig returns a docker config with the entries of several hosts, as the operator writes it.
func DockerConfig(t testing.TB, passwords map[string]string) []byte {
	auths := map[string]any{}
	for host, password := range passwords {
		auths[host] = map[string]string{"auth": Auth(password)}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	return text
}
