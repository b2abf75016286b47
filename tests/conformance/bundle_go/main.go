// Command bundle verifies an evidence bundle with transparency-dev/formats and merkle alone.
//
// It shares no code with Sealward: formats reads the proofs and the signed checkpoint, merkle checks
// the inclusion of each entry, sumdb/note the signature.
//
// The exit status is 0 if everything holds, 1 if something does not, 2 for wrong usage.
package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/formats/proof"
	merkle "github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

const saltSize = 32

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: bundle DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	keys, err := verifiers(filepath.Join(dir, "log.vkey"))
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "events", "*.tlog-proof"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("there is no proof")
	}
	for _, file := range files {
		if err := verify(file, keys); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
	}
	fmt.Printf("OK: %d events\n", len(files))
	return nil
}

func verifiers(file string) ([]note.Verifier, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var keys []note.Verifier
	for _, line := range strings.Fields(string(text)) {
		key, err := note.NewVerifier(line)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func verify(file string, keys []note.Verifier) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	leaf, err := os.ReadFile(strings.TrimSuffix(file, ".tlog-proof") + ".leaf")
	if err != nil {
		return err
	}
	var receipt proof.TLogProof
	if err := receipt.Unmarshal(data); err != nil {
		return err
	}
	if len(receipt.ExtraData) < saltSize || !bytes.Equal(receipt.ExtraData[saltSize:], leaf) {
		return errors.New("the entry in the proof is not the one in the file")
	}
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".tlog-proof"), "-", ""))
	if err != nil || len(leaf) < 17 || !bytes.Equal(leaf[1:17], id) {
		return errors.New("the entry is another event's")
	}
	checkpoint, err := signed(receipt.Checkpoint, keys)
	if err != nil {
		return err
	}
	hash := rfc6962.DefaultHasher.HashLeaf(leaf)
	path := make([][]byte, len(receipt.Hashes))
	for i := range receipt.Hashes {
		path[i] = receipt.Hashes[i][:]
	}
	return merkle.VerifyInclusion(
		rfc6962.DefaultHasher, receipt.Index, checkpoint.Size, hash, path, checkpoint.Hash)
}

func signed(data []byte, keys []note.Verifier) (*log.Checkpoint, error) {
	err := errors.New("there is no verifier key")
	for _, key := range keys {
		checkpoint, _, _, failed := log.ParseCheckpoint(data, key.Name(), key)
		if failed == nil {
			return checkpoint, nil
		}
		err = failed
	}
	return nil, err
}
