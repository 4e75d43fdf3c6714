package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	exportMethod    = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	maxRequestBytes = 16 << 20
)

// edge stands before Tempo's OTLP gRPC receiver and changes one thing: the status of a failed push.
//
// This version answers Unknown while its ring is empty (starting) or leaving (stopping), and by the OTLP specification
// a client drops what was answered Unknown. So every restart would lose the batches in flight. Unavailable makes the
// client keep them. Tempo 3 does so itself.
type edge struct {
	server *grpc.Server
	target *grpc.ClientConn
	dir    string
}

// raw is a message that is passed on as it came.
type raw struct{ bytes []byte }

func (r *raw) Marshal() ([]byte, error) { return r.bytes, nil }
func (r *raw) Reset()                   { r.bytes = nil }
func (r *raw) Unmarshal(data []byte) error {
	r.bytes = append([]byte(nil), data...)
	return nil
}

// newEdge moves the receiver from its configured endpoint to a private socket and listens in its place.
func newEdge(receivers map[string]any) (*edge, error) {
	grpcConfig, err := dig(receivers, "otlp", "protocols", "grpc")
	if err != nil {
		return nil, err
	}
	endpoint, ok := grpcConfig["endpoint"].(string)
	if !ok {
		return nil, fmt.Errorf("distributor.receivers.otlp.protocols.grpc.endpoint is missing")
	}
	dir, err := os.MkdirTemp("", "tempo-otlp-")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "receiver")
	grpcConfig["endpoint"] = socket
	grpcConfig["transport"] = "unix"
	target, err := grpc.Dial("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", endpoint)
	if err != nil {
		return nil, err
	}
	e := &edge{target: target, dir: dir}
	e.server = grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes), grpc.UnknownServiceHandler(e.forward))
	go func() { _ = e.server.Serve(listener) }()
	return e, nil
}

func (e *edge) forward(_ any, stream grpc.ServerStream) error {
	if method, _ := grpc.MethodFromServerStream(stream); method != exportMethod {
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
	}
	var request, response raw
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	if err := e.export(stream.Context(), &request, &response); err != nil {
		return err
	}
	return stream.SendMsg(&response)
}

func (e *edge) export(ctx context.Context, request, response *raw) error {
	err := e.target.Invoke(ctx, exportMethod, request, response)
	switch status.Code(err) {
	case codes.Unknown, codes.Internal:
		return status.Error(codes.Unavailable, status.Convert(err).Message())
	default:
		return err
	}
}

func (e *edge) close() {
	e.server.Stop()
	_ = e.target.Close()
	_ = os.RemoveAll(e.dir)
}

// dig walks a tree that yaml.v2 made, where nested maps have keys of any type, and returns the last map with string keys,
// put back in place so that what is written to it is seen.
func dig(tree map[string]any, path ...string) (map[string]any, error) {
	for i, key := range path {
		next := map[string]any{}
		switch found := tree[key].(type) {
		case map[string]any:
			next = found
		case map[any]any:
			for k, v := range found {
				next[fmt.Sprint(k)] = v
			}
		default:
			return nil, fmt.Errorf("distributor.receivers: %v is missing", path[:i+1])
		}
		tree[key] = next
		tree = next
	}
	return tree, nil
}
