import sys; sys.path.insert(0,"/work/main/tests/commands")
from test_evaluate_further import *
from test_evaluate_further import trained, run
def test_self(run, toy, run_here):
    for method,by in (("isotonic","scan"),("platt","patient"),("isotonic","patient")):
        c,o,e=run_here("evaluate",run,toy,"--calibrate",method,"--by",by,"--against",run,"-o",method+by,"--draws",200)
        d=document(method+by)["comparison"]
        print(method,by,*[{k:(v["auroc"],v["other_auroc"],v["difference"]["value"],v["p"]) for k,v in d["findings"].items()}],file=open("/tmp/probe.txt","a"))
    c,o,e=run_here("evaluate",run,toy,"--split","tune","-o","tune"); print(c,[n for n in document("tune")["notes"]])
