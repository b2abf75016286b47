// A Vault 1.14.2 (MPL-2.0) server for tests: the real core, HTTP API, transit,
// PKI, KV, AppRole, cert auth, file audit, and inmem/file/raft storage, without
// the cloud plugins, the UI and the command line.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"
	_ "unsafe" // for linkname

	metrics "github.com/armon/go-metrics"
	log "github.com/hashicorp/go-hclog"

	"github.com/hashicorp/vault/audit"
	auditfile "github.com/hashicorp/vault/builtin/audit/file"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/command/server"
	"github.com/hashicorp/vault/helper/metricsutil"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/physical/raft"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

var secrets = map[string]logical.Factory{"transit": checked(transit.Factory), "pki": checked(pki.Factory)}
var logins = map[string]logical.Factory{"approle": checked(approle.Factory), "cert": checked(cert.Factory)}

// checked gives each path that has none an existence check that always finds
// something, so a write stays an update: what this core did without a check.
func checked(f logical.Factory) logical.Factory {
	return func(ctx context.Context, c *logical.BackendConfig) (logical.Backend, error) {
		b, err := f(ctx, c)
		if err != nil {
			return b, err
		}
		fb := reflect.ValueOf(b).Elem().FieldByName("Backend").Interface().(*framework.Backend)
		for _, p := range fb.Paths {
			if p.ExistenceCheck == nil {
				p.ExistenceCheck = func(context.Context, *logical.Request, *framework.FieldData) (bool, error) { return true, nil }
			}
		}
		return b, nil
	}
}

// sdk v0.9.2 (the newest tagged one this core compiles with) panics on paths
// with a create operation and no existence check. The core's enterprise-only
// placeholder paths are such; they only answer "enterprise only", so drop them.
//
//go:linkname entPaths github.com/hashicorp/vault/vault.entPaths
var entPaths func(*vault.SystemBackend) []*framework.Path

type registry struct{}

func of(t consts.PluginType) map[string]logical.Factory {
	switch t {
	case consts.PluginTypeSecrets:
		return secrets
	case consts.PluginTypeCredential:
		return logins
	}
	return nil
}
func (registry) Contains(n string, t consts.PluginType) bool { _, ok := of(t)[n]; return ok }
func (registry) Get(n string, t consts.PluginType) (func() (interface{}, error), bool) {
	f, ok := of(t)[n]
	return func() (interface{}, error) { return f, nil }, ok
}
func (registry) Keys(t consts.PluginType) (ks []string) {
	for k := range of(t) {
		ks = append(ks, k)
	}
	return
}
func (r registry) DeprecationStatus(n string, t consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(n, t)
}
func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8200", "API address")
	clusterAddr := flag.String("cluster", "", "cluster address (raft)")
	storage := flag.String("storage", "inmem", "inmem, file or raft")
	path := flag.String("path", "", "storage directory")
	node := flag.String("node", "n1", "raft node id")
	crt := flag.String("tls-cert", "", "listener certificate chain, PEM")
	key := flag.String("tls-key", "", "listener key, PEM")
	devToken := flag.String("dev-root-token", "", "initialise, unseal and use this root token")
	dev := flag.Bool("dev", false, "as vault server -dev: inmem storage, unsealed, root token \"root\"")
	flag.StringVar(devToken, "dev-root-token-id", "", "as vault's")
	flag.StringVar(listen, "dev-listen-address", "127.0.0.1:8200", "as vault's")
	level := flag.String("log-level", "warn", "")
	if len(os.Args) > 1 && os.Args[1] == "server" {
		os.Args = append(os.Args[:1], os.Args[2:]...)
	}
	flag.Parse()
	if *dev && *devToken == "" {
		*devToken = "root"
	}
	entPaths = func(*vault.SystemBackend) []*framework.Path { return nil }

	logger := log.New(&log.LoggerOptions{Name: "vault", Level: log.LevelFromString(*level), Output: os.Stderr})
	scheme := "http"
	if *crt != "" {
		scheme = "https"
	}
	conf := &vault.CoreConfig{
		LogicalBackends: secrets, CredentialBackends: logins,
		AuditBackends:   map[string]audit.Factory{"file": auditfile.Factory},
		BuiltinRegistry: registry{},
		RawConfig:       &server.Config{SharedConfig: &configutil.SharedConfig{}},
		Logger:          logger, DisableMlock: true, StorageType: *storage,
		MetricsHelper: metricsutil.NewMetricsHelper(metrics.NewInmemSink(10*time.Second, time.Minute), false),
		MetricSink:    metricsutil.BlackholeSink(),
		RedirectAddr:  scheme + "://" + *listen,
		DevToken:      *devToken,
	}
	var err error
	switch *storage {
	case "inmem":
		conf.Physical, err = inmem.NewInmem(nil, logger)
	case "file":
		conf.Physical, err = file.NewFileBackend(map[string]string{"path": *path}, logger)
	case "raft":
		conf.Physical, err = raft.NewRaftBackend(map[string]string{"path": *path, "node_id": *node}, logger)
		if err == nil {
			conf.HAPhysical, conf.ClusterAddr = conf.Physical.(physical.HABackend), "https://"+*clusterAddr
		}
	default:
		err = fmt.Errorf("unknown storage %q", *storage)
	}
	must(err)
	core, err := vault.NewCore(conf)
	must(err)
	if *clusterAddr != "" {
		a, err := net.ResolveTCPAddr("tcp", *clusterAddr)
		must(err)
		core.SetClusterListenerAddrs([]*net.TCPAddr{a})
	}
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{
		Address: *listen, MaxRequestSize: vaulthttp.DefaultMaxRequestSize, MaxRequestDuration: 90 * time.Second,
	}})
	core.SetClusterHandler(handler)
	ln, err := net.Listen("tcp", *listen)
	must(err)
	if *crt != "" {
		pair, err := tls.LoadX509KeyPair(*crt, *key)
		must(err)
		ln = tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
			ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}})
	}
	if *devToken != "" {
		ctx := namespace.RootContext(context.Background())
		init, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}})
		must(err)
		_, err = core.Unseal(init.SecretShares[0])
		must(err)
		for i := 0; ; i++ {
			if standby, _ := core.Standby(); !standby {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		_, err = core.HandleRequest(ctx, &logical.Request{ID: "dev-root", Operation: logical.UpdateOperation,
			ClientToken: init.RootToken, Path: "auth/token/create", Data: map[string]interface{}{
				"id": *devToken, "policies": []string{"root"}, "no_parent": true, "no_default_policy": true}})
		must(err)
		fmt.Printf("unseal_key %x\n", init.SecretShares[0])
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(ln)
	fmt.Println("listening", *listen)
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	<-c
	srv.Close()
	core.Shutdown()
}
