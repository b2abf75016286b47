// Command cose verifies a COSE receipt (RFC 9942) of a Sealward log with veraison/go-cose and
// golang.org/x/mod/sumdb alone.
//
// It shares no code with Sealward: go-cose reads the message and checks its signature, sumdb/tlog
// checks the inclusion proof in it, sumdb/note reads the verifier key.
//
// The exit status is 0 if everything holds, 1 if something does not, 2 for wrong usage.
package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	labelCWTClaims = int64(15)
	labelVDS       = int64(395)
	labelVDP       = int64(396)
	rfc9162SHA256  = int64(1)
	inclusion      = int64(-1)
	issuer         = int64(1)
)

// proof is the content of an inclusion proof, RFC 9942 section 5.2.
type proof struct {
	_     struct{} `cbor:",toarray"`
	Size  int64
	Index int64
	Path  [][]byte
}

func main() {
	receipt := flag.String("receipt", "", "COSE receipt")
	leaf := flag.String("leaf", "", "the entry")
	vkey := flag.String("vkey", "", "file with the log's verifier key")
	flag.Parse()
	if *receipt == "" || *leaf == "" || *vkey == "" || flag.NArg() != 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*receipt, *leaf, *vkey); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

func run(receiptFile, leafFile, vkeyFile string) error {
	data, err := os.ReadFile(receiptFile)
	if err != nil {
		return err
	}
	leaf, err := os.ReadFile(leafFile)
	if err != nil {
		return err
	}
	name, key, err := publicKey(vkeyFile)
	if err != nil {
		return err
	}
	var message cose.Sign1Message
	if err := message.UnmarshalCBOR(data); err != nil {
		return fmt.Errorf("not a COSE_Sign1: %w", err)
	}
	if message.Payload != nil {
		return errors.New("the payload is not detached")
	}
	if err := named(message.Headers.Protected, name); err != nil {
		return err
	}
	proven, err := inclusionProof(message.Headers.Unprotected)
	if err != nil {
		return err
	}
	root, err := rootOf(proven, leaf)
	if err != nil {
		return err
	}
	verifier, err := cose.NewVerifier(cose.AlgorithmEdDSA, key)
	if err != nil {
		return err
	}
	message.Payload = root[:]
	if err := message.Verify(nil, verifier); err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	fmt.Printf("OK: entry %d of %d in %s\n", proven.Index, proven.Size, name)
	return nil
}

func publicKey(file string) (string, ed25519.PublicKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", nil, err
	}
	line := strings.TrimSpace(string(text))
	verifier, err := note.NewVerifier(line)
	if err != nil {
		return "", nil, fmt.Errorf("verifier key: %w", err)
	}
	_, rest, _ := strings.Cut(line, "+")
	_, encoded, _ := strings.Cut(rest, "+")
	material, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", nil, err
	}
	return verifier.Name(), ed25519.PublicKey(material[1:]), nil
}

func named(header cose.ProtectedHeader, name string) error {
	if vds, ok := header[labelVDS].(int64); !ok || vds != rfc9162SHA256 {
		return errors.New("the tree is not RFC9162_SHA256")
	}
	claims, ok := header[labelCWTClaims].(map[any]any)
	if !ok || claims[issuer] != name {
		return errors.New("the receipt is of another log")
	}
	return nil
}

func inclusionProof(header cose.UnprotectedHeader) (proof, error) {
	var proven proof
	proofs, ok := header[labelVDP].(map[any]any)
	if !ok {
		return proven, errors.New("there are no proofs")
	}
	list, ok := proofs[inclusion].([]any)
	if !ok || len(list) != 1 {
		return proven, errors.New("there is not one inclusion proof")
	}
	encoded, ok := list[0].([]byte)
	if !ok {
		return proven, errors.New("the proof is not a byte string")
	}
	return proven, cbor.Unmarshal(encoded, &proven)
}

// rootOf finds the root that the proof leads to: RFC 9162 section 2.1.3.2. sumdb/tlog only compares,
// so the hashing is done here with its two functions and its verdict is asked for afterwards.
func rootOf(proven proof, leaf []byte) (tlog.Hash, error) {
	var path tlog.RecordProof
	for _, node := range proven.Path {
		var hash tlog.Hash
		if len(node) != len(hash) {
			return tlog.Hash{}, errors.New("a hash is not 32 bytes long")
		}
		copy(hash[:], node)
		path = append(path, hash)
	}
	root := tlog.RecordHash(leaf)
	first, second := proven.Index, proven.Size-1
	for _, node := range path {
		if first&1 == 1 || first == second {
			root = tlog.NodeHash(node, root)
			for first&1 == 0 && first != 0 {
				first, second = first>>1, second>>1
			}
		} else {
			root = tlog.NodeHash(root, node)
		}
		first, second = first>>1, second>>1
	}
	if proven.Index < 0 || proven.Index >= proven.Size {
		return root, errors.New("the index is outside of the tree")
	}
	return root, tlog.CheckRecord(path, proven.Size, root, proven.Index, tlog.RecordHash(leaf))
}
