// Command tempo runs Tempo as a single binary for the native stack.
//
// Why not Tempo's own main: since Go 1.21 packages initialise in another order, in which grpc's own "proto" codec
// replaces the one that Tempo registers, and the first push panics (invalid Go type tempopb.PreallocBytes). Registering
// a codec in main, after every init, settles it.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/drone/envsubst"
	gogoproto "github.com/gogo/protobuf/proto"
	"github.com/golang/protobuf/proto"
	"github.com/grafana/tempo/cmd/tempo/app"
	"github.com/grafana/tempo/pkg/util/log"
	"google.golang.org/grpc/encoding"
	"gopkg.in/yaml.v2"
)

// selfCoder is what Tempo's generated messages are: they know their wire form better than any reflection does.
type selfCoder interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
	Reset()
}

type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) ([]byte, error) {
	switch m := v.(type) {
	case selfCoder:
		return m.Marshal()
	case proto.Message:
		return proto.Marshal(m)
	default:
		return nil, fmt.Errorf("cannot marshal %T as protobuf", v)
	}
}

func (codec) Unmarshal(data []byte, v any) error {
	switch m := v.(type) {
	case selfCoder:
		m.Reset()
		return m.Unmarshal(data)
	case proto.Message:
		return proto.Unmarshal(data, m)
	case gogoproto.Message:
		return gogoproto.Unmarshal(data, m)
	default:
		return fmt.Errorf("cannot unmarshal %T from protobuf", v)
	}
}

// options are given as Tempo's own command line has them, so that the stack starts this build and an image alike.
type options struct {
	file      string
	expandEnv bool
	verify    bool
}

func load() (*app.Config, options, error) {
	var opts options
	cfg := &app.Config{}
	cfg.RegisterFlagsAndApplyDefaults("", flag.CommandLine)
	flag.StringVar(&opts.file, "config.file", "", "configuration file to load")
	flag.BoolVar(&opts.expandEnv, "config.expand-env", false, "expand ${NAME:-default} in the file")
	flag.BoolVar(&opts.verify, "config.verify", false, "check the configuration and exit")
	flag.Parse()
	if opts.file == "" {
		return nil, opts, fmt.Errorf("-config.file is missing")
	}
	text, err := os.ReadFile(opts.file)
	if err != nil {
		return nil, opts, err
	}
	if opts.expandEnv {
		expanded, err := envsubst.EvalEnv(string(text))
		if err != nil {
			return nil, opts, fmt.Errorf("%s: %w", opts.file, err)
		}
		text = []byte(expanded)
	}
	if err := yaml.UnmarshalStrict(text, cfg); err != nil {
		return nil, opts, fmt.Errorf("%s: %w", opts.file, err)
	}
	// One process is its own ring: nothing to gossip with and nowhere to replicate to.
	ring := &cfg.Ingester.LifecyclerConfig
	ring.RingConfig.KVStore.Store = "inmemory"
	ring.RingConfig.ReplicationFactor = 1
	ring.Addr = "127.0.0.1"
	cfg.Generator.Ring.KVStore.Store = "inmemory"
	cfg.Generator.Ring.InstanceAddr = "127.0.0.1"
	return cfg, opts, nil
}

func run() error {
	cfg, opts, err := load()
	if err != nil {
		return err
	}
	if opts.verify {
		if warnings := cfg.CheckConfig(); len(warnings) != 0 {
			return fmt.Errorf("%s: %s (%s)", opts.file, warnings[0].Message, warnings[0].Explain)
		}
		return nil
	}
	log.InitLogger(&cfg.Server)
	edge, err := newEdge(cfg.Distributor.Receivers)
	if err != nil {
		return err
	}
	defer edge.close()
	tempo, err := app.New(*cfg)
	if err != nil {
		return err
	}
	go endEarly(cfg, edge)
	return tempo.Run()
}

// endEarly ends the process once a signal has stopped the ingester, the only part with something to save.
//
// Tempo goes on for 30 s: its receivers wait for requests that might still come. Ours have ended with the edge.
func endEarly(cfg *app.Config, edge *edge) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	edge.close()
	address := net.JoinHostPort(cfg.Server.HTTPListenAddress, strconv.Itoa(cfg.Server.HTTPListenPort))
	for !ingesterStopped("http://" + address + "/status/services") {
		time.Sleep(50 * time.Millisecond)
	}
	os.Exit(0)
}

func ingesterStopped(url string) bool {
	response, err := http.Get(url)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if text := lines.Text(); strings.Contains(text, "ingester") && strings.Contains(text, "Terminated") {
			return true
		}
	}
	return false
}

func main() {
	encoding.RegisterCodec(codec{})
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "tempo:", err)
		os.Exit(1)
	}
}
