// Command entries opens and seals audit entries with Tink for Go, without Sealward's code.
//
// It reads one JSON document from standard input and writes one to standard output; bytes are
// base64. What an entry is made of: sealward/seal/entries.py.
package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	gcm "github.com/tink-crypto/tink-go/v2/proto/aes_gcm_go_proto"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"github.com/tink-crypto/tink-go/v2/tink"
	"google.golang.org/protobuf/proto"
)

const (
	prefixBytes     = 49
	segmentBytes    = 8
	commitmentBytes = 32
	keyBytes        = 32
	keyID           = 1
)

type input struct {
	BranchKey []byte   `json:"branch_key"`
	Segment   []byte   `json:"segment"`
	Origin    string   `json:"origin"`
	Leaves    [][]byte `json:"leaves"`
	// What to seal: clear parts of leaves and their texts.
	Prefixes [][]byte `json:"prefixes"`
	Texts    [][]byte `json:"texts"`
}

type opened struct {
	Text  []byte `json:"text"`
	Error string `json:"error"`
}

type output struct {
	Opened []opened `json:"opened"`
	Leaves [][]byte `json:"leaves"`
}

type segment struct {
	id, commitment []byte
	origin         string
	primitive      tink.AEAD
}

func newSegment(in input) (*segment, error) {
	material, err := hkdf.Key(sha256.New, in.BranchKey, nil, "sealward/audit-entry/v1", keyBytes+commitmentBytes)
	if err != nil {
		return nil, err
	}
	value, err := proto.Marshal(&gcm.AesGcmKey{KeyValue: material[:keyBytes]})
	if err != nil {
		return nil, err
	}
	handle, err := insecurecleartextkeyset.Read(&keyset.MemReaderWriter{Keyset: &tinkpb.Keyset{
		PrimaryKeyId: keyID,
		Key: []*tinkpb.Keyset_Key{{
			KeyData: &tinkpb.KeyData{
				TypeUrl:         "type.googleapis.com/google.crypto.tink.AesGcmKey",
				Value:           value,
				KeyMaterialType: tinkpb.KeyData_SYMMETRIC,
			},
			Status:           tinkpb.KeyStatusType_ENABLED,
			KeyId:            keyID,
			OutputPrefixType: tinkpb.OutputPrefixType_TINK,
		}},
	}})
	if err != nil {
		return nil, err
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, err
	}
	return &segment{in.Segment, material[keyBytes:], in.Origin, primitive}, nil
}

func (s *segment) about(prefix []byte) []byte {
	return bytes.Join([][]byte{prefix, s.id, []byte(s.origin)}, nil)
}

func (s *segment) open(leaf []byte) ([]byte, error) {
	if len(leaf) < prefixBytes+segmentBytes+commitmentBytes {
		return nil, errors.New("the leaf is too short")
	}
	prefix, sealed := leaf[:prefixBytes], leaf[prefixBytes:]
	if !bytes.Equal(sealed[:segmentBytes], s.id) {
		return nil, errors.New("the entry is of another segment")
	}
	sealed = sealed[segmentBytes:]
	if !bytes.Equal(sealed[:commitmentBytes], s.commitment) {
		return nil, errors.New("the entry is committed to another key")
	}
	return s.primitive.Decrypt(sealed[commitmentBytes:], s.about(prefix))
}

func (s *segment) seal(prefix, text []byte) ([]byte, error) {
	ciphertext, err := s.primitive.Encrypt(text, s.about(prefix))
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{prefix, s.id, s.commitment, ciphertext}, nil), nil
}

func run() error {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return err
	}
	segment, err := newSegment(in)
	if err != nil {
		return err
	}
	out := output{Opened: []opened{}, Leaves: [][]byte{}}
	for _, leaf := range in.Leaves {
		text, err := segment.open(leaf)
		if err != nil {
			out.Opened = append(out.Opened, opened{Error: err.Error()})
			continue
		}
		out.Opened = append(out.Opened, opened{Text: text})
	}
	for at, prefix := range in.Prefixes {
		leaf, err := segment.seal(prefix, in.Texts[at])
		if err != nil {
			return err
		}
		out.Leaves = append(out.Leaves, leaf)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
