#!/usr/bin/python3
"""Write synthetic-weight BF16 GGUF files (needs python3-numpy only).
usage: make_gguf.py {wide|olmoe|switch|dense} OUT.gguf [VOCAB.gguf]
Without VOCAB.gguf a made-up SentencePiece-type vocabulary of 32,000 pieces is written (50,432 for wide and olmoe).
Random-normal weights (std 0.02) cut from one 32M-element random pool at random offsets;
token embeddings have std 1 so the routers see token-dependent input and routing is balanced."""
import struct,sys,numpy as np
shape,out=sys.argv[1:3]; vocab=sys.argv[3] if len(sys.argv)>3 else None
C={'wide':  dict(arch='qwen3moe',d=2048,L=16,h=16,kv=16,ff=1024,E=64,K=8, ctx=8192,theta=10000.0),
   'olmoe': dict(arch='olmoe', d=2048,L=16,h=16,kv=16,ff=1024,E=64,K=8, ctx=8192,theta=10000.0),
   'switch':dict(arch='llama', d=1024,L=16,h=16,kv=8, ff=2816,E=16,K=1, ctx=8192,theta=10000.0),
   'dense': dict(arch='llama', d=1024,L=16,h=16,kv=8, ff=2816,E=0, K=0, ctx=8192,theta=10000.0)}[shape]
def S(s): s=s.encode(); return struct.pack('<Q',len(s))+s
kvs=[]
if vocab:  # ---- copy the raw tokenizer KVs
    b=open(vocab,'rb').read(); p=4; ver,nt,nkv=struct.unpack_from('<IQQ',b,p); p+=20
    SZ={0:1,1:1,2:2,3:2,4:4,5:4,6:4,7:1,10:8,11:8,12:8}; nv=None
    def skip(t,p):
        if t in SZ: return p+SZ[t]
        if t==8: return p+8+struct.unpack_from('<Q',b,p)[0]
        et,n=struct.unpack_from('<IQ',b,p); p+=12
        if et in SZ: return p+n*SZ[et]
        for _ in range(n): p=skip(et,p)
        return p
    for _ in range(nkv):
        s=p; n=struct.unpack_from('<Q',b,p)[0]; k=b[p+8:p+8+n].decode(); p+=8+n
        t=struct.unpack_from('<I',b,p)[0]; p+=4
        if k=='tokenizer.ggml.tokens': nv=struct.unpack_from('<IQ',b,p)[1]
        p=skip(t,p)
        if k.startswith('tokenizer.'): kvs.append(b[s:p])
else:      # ---- make one up: control tokens, bytes, then pieces
    nv=50432 if C['d']==2048 else 32000
    toks=['<unk>','<s>','</s>']+['<0x%02X>'%i for i in range(256)]+['\u2581']+['\u2581p%d'%i for i in range(nv-260)]
    types=[2,3,3]+[6]*256+[1]*(nv-259)
    A=lambda et,n,raw: struct.pack('<IIQ',9,et,n)+raw
    kvs+=[S('tokenizer.ggml.model')+struct.pack('<I',8)+S('llama'),
          S('tokenizer.ggml.tokens')+A(8,nv,b''.join(map(S,toks))),
          S('tokenizer.ggml.scores')+A(6,nv,np.arange(0,-nv,-1,dtype=np.float32).tobytes()),
          S('tokenizer.ggml.token_type')+A(5,nv,np.array(types,np.int32).tobytes()),
          S('tokenizer.ggml.bos_token_id')+struct.pack('<II',4,1),S('tokenizer.ggml.eos_token_id')+struct.pack('<II',4,2)]
def kv(k,t,v): kvs.append(S(k)+struct.pack('<I',t)+v)
u=lambda x:struct.pack('<I',x); f=lambda x:struct.pack('<f',x)
a=C['arch']; d,L,h,nkvh,ff,E=C['d'],C['L'],C['h'],C['kv'],C['ff'],C['E']; hd=d//h
kv('general.architecture',8,S(a)); kv('general.name',8,S('synthetic-'+shape)); kv('general.file_type',4,u(32)); kv('general.quantization_version',4,u(2))
for k,v in dict(context_length=C['ctx'],embedding_length=d,block_count=L,feed_forward_length=ff,vocab_size=nv).items(): kv(f'{a}.{k}',4,u(v))
kv(f'{a}.attention.head_count',4,u(h)); kv(f'{a}.attention.head_count_kv',4,u(nkvh))
kv(f'{a}.attention.layer_norm_rms_epsilon',6,f(1e-5)); kv(f'{a}.rope.freq_base',6,f(C['theta'])); kv(f'{a}.rope.dimension_count',4,u(hd))
if E: kv(f'{a}.expert_count',4,u(E)); kv(f'{a}.expert_used_count',4,u(C['K']))
if a=='qwen3moe':
    for k,v in (('expert_feed_forward_length',ff),('attention.key_length',hd),('attention.value_length',hd)): kv(f'{a}.{k}',4,u(v))
# ---- tensors (ne order = ggml order, fastest first)
T=[('token_embd.weight',(d,nv),30,1.0),('output_norm.weight',(d,),0,'one'),('output.weight',(d,nv),30,.02)]
for i in range(L):
    P=f'blk.{i}.'
    T+=[(P+'attn_norm.weight',(d,),0,'one'),(P+'attn_q.weight',(d,d),30,.02),(P+'attn_k.weight',(d,hd*nkvh),30,.02),(P+'attn_v.weight',(d,hd*nkvh),30,.02),(P+'attn_output.weight',(d,d),30,.02),(P+'ffn_norm.weight',(d,),0,'one')]
    if a=='olmoe': T+=[(P+'attn_q_norm.weight',(d,),0,'one'),(P+'attn_k_norm.weight',(hd*nkvh,),0,'one')]
    if a=='qwen3moe': T+=[(P+'attn_q_norm.weight',(hd,),0,'one'),(P+'attn_k_norm.weight',(hd,),0,'one')]
    if E: T+=[(P+'ffn_gate_inp.weight',(d,E),0,.02),(P+'ffn_gate_exps.weight',(d,ff,E),30,.02),(P+'ffn_up_exps.weight',(d,ff,E),30,.02),(P+'ffn_down_exps.weight',(ff,d,E),30,.02)]
    else: T+=[(P+'ffn_gate.weight',(d,ff),30,.02),(P+'ffn_up.weight',(d,ff),30,.02),(P+'ffn_down.weight',(ff,d),30,.02)]
esz={0:4,30:2}; off=0; infos=b''; tot=0
for n,sh,t,_ in T:
    infos+=S(n)+u(len(sh))+b''.join(struct.pack('<Q',x) for x in sh)+u(t)+struct.pack('<Q',off)
    nb=int(np.prod(sh))*esz[t]; tot+=int(np.prod(sh)); off+=(nb+31)//32*32
hdr=b'GGUF'+struct.pack('<IQQ',3,len(T),len(kvs))+b''.join(kvs)+infos
hdr+=b'\0'*(-len(hdr)%32)
rng=np.random.default_rng(1234); N=1<<25
pool=rng.standard_normal(N,dtype=np.float32)
bf=lambda x:((x.view(np.uint32)+0x8000)>>16).astype(np.uint16)
pools={s:bf(pool*np.float32(s)) for s in (1.0,.02)}
with open(out,'wb') as o:
    o.write(hdr)
    for n,sh,t,s in T:
        ne=int(np.prod(sh))
        if s=='one': x=np.ones(ne,np.float32).tobytes(); o.write(x); nb=len(x)
        elif t==0: x=(rng.standard_normal(ne,dtype=np.float32)*s).tobytes(); o.write(x); nb=len(x)
        else:
            nb=ne*2; left=ne; q=pools[s]
            while left:
                st=int(rng.integers(0,N-1)); c=min(left,N-st,1<<22); o.write(q[st:st+c].data); left-=c
        o.write(b'\0'*(-nb%32))
print(out,'params',tot,'bytes',len(hdr)+off,'vocab',nv)
